"""From records to figures with intervals: per arm, per length, over time, and arm against arm."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helios.evaluation.accuracy import ATTRIBUTES
from helios.evaluation.intervals import (
    Estimate,
    curve,
    jackknife,
    mean_estimate,
    paired_estimate,
    plain,
)
from helios.evaluation.metrics.features import (
    Moments,
    diversity,
    frechet_distance,
    kernel_distance,
)
from helios.evaluation.ratings import LONG, SHORT, missing_for, rating, throughput_rating, total
from helios.geometry import CHUNK_FRAMES, FPS, chunk_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helios.evaluation.store import Record

    Values = NDArray[np.float64]

__all__ = ["Arm", "compare", "grades", "summary"]

GROUPS = 40
"""Parts that prompts are dealt into for figures of whole sets."""

FEWEST = 16
"""Prompts below which a distance between sets says nothing."""

MINUTES = (1, 10, 30, 60)

POINTS = 240
"""Points of a curve at most: an hour has 2,618 chunks, a plot has not."""

VERDICT_POINTS = 16
"""The same for right or wrong, which is all noise chunk by chunk."""

LEVELS = ("saturation", "lightness", "sharpness", "blur", "noise", "amplitude", "smoothness")
"""Figures whose level differs from prompt to prompt."""

SHARES = frozenset((*ATTRIBUTES, "caption"))
"""Figures that are shares of verdicts."""

SHORT_TIER = 81
"""Frames up to which the benchmark weighs without drift."""


@dataclass(frozen=True)
class Arm:
    """One column of a table: videos of one model, or of several trainings of it.

    Attributes:
        name: of the column.
        trainings: per checkpoint, its records; prompts are numbered alike in all of them.
        speed: one stream against the clock, if that was measured.
    """

    name: str
    trainings: Sequence[Sequence[Record]]
    speed: Mapping[str, float | int] | None = None

    @property
    def records(self) -> list[Record]:
        """Of all trainings."""
        return [record for training in self.trainings for record in training]

    @property
    def prompts(self) -> list[int]:
        """Numbers of the prompts."""
        return sorted({record.index for record in self.records})

    def values(self, length: int, name: str, part: str = "value") -> dict[int, list[float]]:
        """Per prompt, one figure of its videos; nan where a video has none."""
        return self._by_prompt(
            (record.index, _part(record.values["figures"][str(length)].get(name, {}), part))
            for record in self.records
        )

    def _by_prompt(self, pairs: Iterable[tuple[int, float]]) -> dict[int, list[float]]:
        result: dict[int, list[float]] = defaultdict(list)
        for index, value in pairs:
            result[index].append(value)
        return {index: result[index] for index in sorted(result)}

    def rows(self, length: int) -> dict[int, Values]:
        """Per prompt the features of the first and the last chunk of its videos, ``[n, F]``."""
        last = chunk_count(length) - 1
        result: dict[int, list[Values]] = defaultdict(list)
        for record in self.records:
            if len(record.features) > last:
                chosen = record.features[sorted({0, last})].astype(np.float64)
                result[record.index].append(chosen)
        return {index: np.concatenate(result[index]) for index in sorted(result)}


def _part(figure: Mapping[str, float | None], part: str) -> float:
    """A stored figure: ``value``, ``first`` or ``last``; ``drift`` and ``change`` between them."""
    if part in ("drift", "change"):
        change = _part(figure, "last") - _part(figure, "first")
        return abs(change) if part == "drift" else change
    value = figure.get(part)
    return math.nan if value is None else value


def summary(arm: Arm, lengths: Sequence[int], reference: Arm | None = None) -> dict[str, Any]:
    """Everything of one arm, as plain values.

    Args:
        arm: the records.
        lengths: of which figures are wanted.
        reference: renders of the same captions, for distances between sets.
    """
    first = arm.records[0]
    result: dict[str, Any] = {
        "videos": len(arm.records),
        "prompts": len(arm.prompts),
        "trainings": len(arm.trainings),
        "identity": [training[0].values["identity"] for training in arm.trainings],
        "work": first.values["work"],
        "speed": arm.speed,
        "lengths": {str(length): _figures(arm, length) for length in lengths},
        "sets": {str(length): _sets(arm, length, reference) for length in lengths},
        "stream": first.values["stream"],
        "curves": _curves(arm),
        "minutes": _minutes(arm),
    }
    return result


def _figures(arm: Arm, length: int) -> dict[str, Any]:
    names = arm.records[0].values["figures"][str(length)]
    figures: dict[str, Any] = {}
    for name, stored in names.items():
        parts = ("value", "first", "last", "drift", "change") if "first" in stored else ("value",)
        entry: dict[str, Any] = {
            part: mean_estimate(
                list(arm.values(length, name, part).values()),
                share=name in SHARES and part in ("value", "first", "last"),
            ).to_json()
            for part in parts
        }
        if len(arm.trainings) > 1:
            alone = [Arm(arm.name, [training]) for training in arm.trainings]
            for part in ("value", "change")[: 2 if len(parts) > 1 else 1]:
                entry[f"{part} of trainings"] = [
                    plain(mean_estimate(list(one.values(length, name, part).values())).value)
                    for one in alone
                ]
        figures[name] = entry
    return figures


def _curves(arm: Arm) -> dict[str, Any]:
    """Mean and band over time; videos of one prompt are averaged first.

    Of figures in whose level prompts differ more than they drift there is a second curve, ``NAME
    change``: every video against its own first chunk.
    """
    result: dict[str, Any] = {}
    for name in arm.records[0].curves:
        rows: dict[int, list[Values]] = defaultdict(list)
        for record in arm.records:
            values = record.curves.get(name)
            if values is not None:
                rows[record.index].append(values.astype(np.float64))
        if not rows or len({len(row) for some in rows.values() for row in some}) != 1:
            continue
        means = [np.mean(some, axis=0) for some in rows.values()]
        size = -(-len(means[0]) // (VERDICT_POINTS if name in ATTRIBUTES else POINTS))
        result[name] = _banded(means, size)
        if name in LEVELS:
            result[f"{name} change"] = _banded([row - row[0] for row in means], size)
    return result


def _banded(rows: Sequence[Values], size: int) -> dict[str, Any]:
    """Mean and band of means over ``size`` chunks each; a rest that fills none is left out."""
    binned = [row[: len(row) // size * size].reshape(-1, size).mean(axis=1) for row in rows]
    values = {
        key: [plain(float(value), 4) for value in values]
        for key, values in zip(("mean", "low", "high"), curve(binned), strict=True)
    }
    return values | {"chunks per point": size}


def _minutes(arm: Arm) -> dict[str, Any]:
    """Every curve's mean over the minute that ends at 1, 10, 30 and 60 minutes, if it lasts."""
    result: dict[str, Any] = {}
    for minute in MINUTES:
        first, last = ((60 * FPS * m) // CHUNK_FRAMES for m in (minute - 1, minute))
        entries: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in arm.records:
            for name, values in record.curves.items():
                part = values[first:last][np.isfinite(values[first:last])]
                if len(values) >= last and len(part):
                    entries[name][record.index].append(float(part.mean(dtype=np.float64)))
        if entries:
            result[str(minute)] = {
                name: mean_estimate(list(by_prompt.values())).to_json()
                for name, by_prompt in entries.items()
            }
    return result


def _sets(arm: Arm, length: int, reference: Arm | None) -> dict[str, Any]:
    """Figures of all videos together."""
    result = {}
    by_seed: dict[int, list[float]] = {}
    for index in arm.prompts:
        for training in arm.trainings:
            small = [record.small for record in training if record.index == index]
            if len(small) > 1:
                by_seed.setdefault(index, []).append(diversity(np.stack(small)))
    if by_seed:
        result["diversity"] = mean_estimate(list(by_seed.values())).to_json()
    if reference is not None and reference.name != arm.name:
        ours, theirs = arm.rows(length), reference.rows(length)
        both = sorted(ours.keys() & theirs.keys())
        if len(both) >= FEWEST:
            pair = _Sets([ours[i] for i in both], [theirs[i] for i in both])
            result["feature_distance"] = pair.estimate(pair.frechet).to_json()
            result["kernel_distance"] = pair.estimate(pair.kernel).to_json()
    return result


class _Sets:
    """Two sets of features dealt into the same groups of prompts."""

    def __init__(self, ours: Sequence[Values], theirs: Sequence[Values]) -> None:
        self._count = min(GROUPS, len(ours))
        self._rows = [
            [np.concatenate(side[group :: self._count]) for group in range(self._count)]
            for side in (ours, theirs)
        ]
        self._moments = [[Moments.of(rows) for rows in side] for side in self._rows]
        self._whole = [_sum(side) for side in self._moments]

    def estimate(self, statistic: Any) -> Estimate:
        """The statistic with what leaving out every group in turn says about it."""
        return jackknife(self._count, statistic, self._count)

    def frechet(self, chosen: NDArray[np.int64]) -> float:
        """Fréchet distance between the chosen groups of both sets."""
        left = sorted(set(range(self._count)) - set(chosen.tolist()))
        sides = []
        for whole, parts in zip(self._whole, self._moments, strict=True):
            rest = whole
            for group in left:
                rest = rest.without(parts[group])
            sides.append(rest)
        return frechet_distance(*sides)

    def kernel(self, chosen: NDArray[np.int64]) -> float:
        """Kernel distance between the chosen groups of both sets."""
        first, second = (np.concatenate([side[k] for k in chosen]) for side in self._rows)
        return kernel_distance(first, second)


def _sum(parts: Sequence[Moments]) -> Moments:
    whole = Moments(len(parts[0].total))
    for part in parts:
        whole.count += part.count
        whole.total = whole.total + part.total
        whole.products = whole.products + part.products
    return whole


def compare(ours: Arm, theirs: Arm, length: int, reference: Arm | None = None) -> dict[str, Any]:
    """``ours - theirs`` on the prompts that both have: every figure, and ratios of distances.

    Per figure ``value`` and, where it has ends, ``last`` and ``change`` (last minus first).
    """
    names = ours.records[0].values["figures"][str(length)]
    figures: dict[str, Any] = {}
    for name, stored in names.items():
        parts = ("value", "last", "change") if "first" in stored else ("value",)
        entry = {}
        for part in parts:
            one, two = ours.values(length, name, part), theirs.values(length, name, part)
            both = sorted(one.keys() & two.keys())
            entry[part] = paired_estimate([one[i] for i in both], [two[i] for i in both]).to_json()
        figures[name] = entry
    result = {"ours": ours.name, "theirs": theirs.name, "length": length, "figures": figures}
    ratio = _ratio(ours, theirs, length, reference)
    if ratio is not None:
        result["feature_distance_ratio"] = ratio.to_json()
    return result


def _ratio(ours: Arm, theirs: Arm, length: int, reference: Arm | None) -> Estimate | None:
    """Fréchet distance of ours over that of theirs, both to the reference."""
    if reference is None or reference.name in (ours.name, theirs.name):
        return None
    rows = [arm.rows(length) for arm in (ours, theirs, reference)]
    both = sorted(rows[0].keys() & rows[1].keys() & rows[2].keys())
    if len(both) < FEWEST:
        return None
    one, two, truth = ([side[index] for index in both] for side in rows)
    first, second = _Sets(one, truth), _Sets(two, truth)
    return first.estimate(lambda chosen: first.frechet(chosen) / second.frechet(chosen))


def grades(arm: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The benchmark's ratings of one arm's summary, and its total if nothing is missing."""
    figures = arm["lengths"][str(length)]
    weights = SHORT if length <= SHORT_TIER else LONG
    ratings = {}
    for name in weights:
        part, _, base = name.rpartition(" ")
        entry = figures.get(base, {}).get("drift" if part else "value")
        if entry is not None and entry["value"] is not None:
            ratings[name] = rating(name, entry["value"])
    fps = arm["speed"]["fps"] if arm["speed"] else None
    return {
        "ratings": ratings,
        "missing": missing_for(ratings, weights),
        "total": total(ratings, weights),
        "throughput": None if fps is None else throughput_rating(fps),
        "total with throughput": None if fps is None else total(ratings, weights, fps),
    }
