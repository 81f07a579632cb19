"""How sure a figure is: bootstrap over prompts for means, jackknife over prompts for the rest.

Videos of one prompt resemble each other, so prompts are what is drawn again, with all their videos;
and two models are compared on the same draws, because their videos share prompts and seeds.
Everything is seeded: the same records give the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from helios.evaluation.accuracy import wilson_interval

__all__ = ["Estimate", "curve", "jackknife", "mean_estimate", "paired_estimate", "plain"]

DRAWS = 1000
CONFIDENCE = 0.95
NORMAL = 1.959963984540054

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; nan where nothing was measured.

    Attributes:
        value: the figure.
        low, high: ends of the interval; nan where there is too little for one.
        count: prompts behind it.
    """

    value: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values; what is not a number is ``None``."""
        return {
            "value": plain(self.value, 5),
            "low": plain(self.low, 5),
            "high": plain(self.high, 5),
            "n": self.count,
        }


def plain(value: float, digits: int = 6) -> float | None:
    """A number for JSON: ``digits`` significant ones, ``None`` for nan and infinity."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def mean_estimate(
    groups: Sequence[Sequence[float]], seed: int = 0, *, share: bool = False
) -> Estimate:
    """The mean over prompts of the mean over each prompt's videos.

    Args:
        groups: per prompt, the values of its videos; nan is left out.
        seed: of the draws.
        share: whether the values are shares of what was right. Where all of them are equal, as at
            100 %, drawing them again knows of no doubt, and Wilson's interval over the prompts
            takes its place.
    """
    means = _means(groups)
    means = means[np.isfinite(means)]
    if not len(means):
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(means.mean())
    low, high = _interval(means, seed)
    if share and means.min() == means.max():
        low, high = wilson_interval(value * len(means), len(means))
    return Estimate(value, low, high, len(means))


def paired_estimate(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], seed: int = 0
) -> Estimate:
    """The mean difference ``ours - theirs`` over the prompts that both have.

    Raises:
        ValueError: if the two do not list the same prompts.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired values need the same prompts: {len(ours)} and {len(theirs)}")
    apart = _means(ours) - _means(theirs)
    return mean_estimate([[value] for value in apart], seed)


def curve(rows: Sequence[Values], seed: int = 0) -> tuple[Values, Values, Values]:
    """Mean and interval at every moment: ``rows`` are one curve ``[T]`` per prompt.

    One draw of prompts serves all moments, so the band belongs to whole curves.
    """
    table = np.stack([np.asarray(row, np.float64) for row in rows])
    with np.errstate(all="ignore"):
        mean = _nanmean(table)
        if len(table) < 2:
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        chosen = np.random.default_rng(seed).integers(0, len(table), (DRAWS, len(table)))
        weights = np.stack([np.bincount(row, minlength=len(table)) for row in chosen])
        there = np.isfinite(table)
        sums = weights @ np.where(there, table, 0.0)
        drawn = sums / (weights @ there)
        tail = (1 - CONFIDENCE) / 2
        low, high = _quantiles(drawn, tail)
    return mean, low, high


def jackknife(
    count: int, statistic: Callable[[NDArray[np.int64]], float], groups: int = 40
) -> Estimate:
    """A figure of a whole set, such as a Fréchet distance, freed of its first-order bias.

    Every group of prompts is left out once: ``g θ - (g - 1) mean θ_(-i)``, with the standard error
    ``√((g - 1) / g Σ (θ_(-i) - mean)²)`` (Efron, Stein 1981).

    Args:
        count: prompts.
        statistic: the figure of the prompts with these numbers.
        groups: how many parts the prompts are dealt into.
    """
    everything = np.arange(count)
    whole = statistic(everything)
    groups = min(groups, count)
    if groups < 4:
        return Estimate(whole, math.nan, math.nan, count)
    member = everything % groups
    left = np.array([statistic(everything[member != group]) for group in range(groups)])
    value = groups * whole - (groups - 1) * float(left.mean())
    spread = math.sqrt((groups - 1) / groups * float(np.square(left - left.mean()).sum()))
    return Estimate(value, value - NORMAL * spread, value + NORMAL * spread, count)


def _means(groups: Sequence[Sequence[float]]) -> Values:
    result = np.full(len(groups), np.nan)
    for index, group in enumerate(groups):
        finite = [value for value in group if math.isfinite(value)]
        if finite:
            result[index] = sum(finite) / len(finite)
    return result


def _interval(values: Values, seed: int) -> tuple[float, float]:
    """Percentiles of the mean of ``values`` drawn again with replacement."""
    if len(values) < 2:
        return math.nan, math.nan
    chosen = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = _quantiles(values[chosen].mean(axis=1)[:, None], tail)
    return float(low[0]), float(high[0])


def _quantiles(drawn: Values, tail: float) -> tuple[Values, Values]:
    """Both ends of every column; nan where a column holds nothing."""
    low, high = np.full((2, drawn.shape[1]), np.nan)
    some = np.isfinite(drawn).any(axis=0)
    if some.any():
        low[some] = np.nanquantile(drawn[:, some], tail, axis=0)
        high[some] = np.nanquantile(drawn[:, some], 1 - tail, axis=0)
    return low, high


def _nanmean(table: Values) -> Values:
    there = np.isfinite(table)
    result: Values = np.where(there, table, 0.0).sum(axis=0) / there.sum(axis=0)
    return result
