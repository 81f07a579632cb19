"""From what was measured of one video to its figures: whole, at both ends, and over time.

A metric's drift is what it says of the first 15 % of the frames against the last 15 %
(specification "training", 9.1). A video that is longer than a length in question counts as one of
that length: generation goes chunk by chunk, so every video begins with the shorter ones.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from helios.evaluation.intervals import plain
from helios.evaluation.metrics.colour import delta_e
from helios.evaluation.metrics.seams import boundary_flicker, snap_back, snap_rate
from helios.geometry import CHUNK_FRAMES, chunk_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from helios.evaluation.meter import Measured

__all__ = ["ENDS", "curves", "ends", "picks", "summarise"]

ENDS = 0.15
"""Share of the frames at each end that drift is measured between."""

PLAIN_SERIES = ("a", "b")
"""Series that only serve others: the two colour axes say nothing by themselves."""


def ends(values: NDArray[np.float32], share: float = ENDS) -> tuple[float, float]:
    """Means over the first and the last ``share`` of a series, at least one value each."""
    count = max(1, round(share * len(values)))
    return _mean(values[:count]), _mean(values[-count:])


def picks(frames: int, count: int, part: str = "whole") -> list[int]:
    """Numbers of ``count`` evenly spaced frames of the whole, the first or the last 15 %.

    Raises:
        ValueError: for another part.
    """
    length = max(1, round(ENDS * frames))
    begin = {"whole": 0, "first": 0, "last": frames - length}.get(part)
    if begin is None:
        raise ValueError(f"part must be whole, first or last, got {part!r}")
    length = frames if part == "whole" else length
    return [begin + int(value) for value in np.linspace(0, length - 1, count).round()]


def summarise(
    measured: Measured,
    frames: int,
    clips: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Figures of the first ``frames`` frames.

    Args:
        measured: what a meter saw.
        frames: how much of the video counts.
        clips: further figures by name and part, of networks that look at whole clips.

    Returns:
        Per name the ``value`` of the whole and, where it has ends, ``first`` and ``last``.

    Raises:
        ValueError: if the video is shorter.
    """
    series = measured.series
    length = len(series["lightness"])
    if not 1 <= frames <= length:
        raise ValueError(f"a video of {length} frames has no first {frames}")
    figures: dict[str, dict[str, float | None]] = {}
    for name, values in series.items():
        if name not in PLAIN_SERIES:
            first, last = ends(values[:frames])
            figures[name] = _entry(_mean(values[:frames]), first, last)
    lab = np.stack([series[name][:frames] for name in ("lightness", "a", "b")], axis=1)
    colours = [ends(column) for column in lab.T]
    begin, end = (torch.tensor([pair[side] for pair in colours]) for side in (0, 1))
    figures["delta_e"] = {"value": plain(float(delta_e(begin, end)))}
    steps, away = series["step"][:frames], series["away"][:frames]
    figures["flicker"] = {"value": plain(boundary_flicker(steps))}
    figures["snap_back"] = {"value": plain(snap_back(away))}
    figures["snap_rate"] = {"value": plain(snap_rate(away))}
    for name, values in _accuracy(measured.verdicts[: chunk_count(frames)]).items():
        first, last = ends(values)
        figures[name] = _entry(_mean(values), first, last)
    for name, parts in (clips or {}).items():
        figures[name] = _entry(*(parts[part] for part in ("whole", "first", "last")))
    return figures


def curves(measured: Measured) -> dict[str, NDArray[np.float32]]:
    """One value per chunk: means of the series, accuracies, and ΔE from the first chunk."""
    series = measured.series
    length = len(series["lightness"])
    count = chunk_count(length)
    result: dict[str, NDArray[np.float32]] = {}
    for name, values in series.items():
        parts = [values[k * CHUNK_FRAMES : (k + 1) * CHUNK_FRAMES] for k in range(count)]
        result[name] = np.array([_mean(part) for part in parts], np.float32)
    lab = torch.from_numpy(np.stack([result[name] for name in ("lightness", "a", "b")], axis=1))
    result["delta_e"] = delta_e(lab[:1].expand_as(lab), lab).float().numpy()
    result |= _accuracy(measured.verdicts)
    return {name: values for name, values in result.items() if name not in PLAIN_SERIES}


def _accuracy(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, NDArray[np.float32]]:
    """Per attribute that is asked, and for the caption as a whole, one value per chunk."""
    if not verdicts:
        return {}
    table = {
        name: np.array([float(verdict[name]) for verdict in verdicts], np.float32)
        for name in verdicts[0]
    }
    # "all four" is made of others, so it would count them twice.
    own = np.stack([values for name, values in table.items() if name != "all four"])
    return {"caption": own.mean(axis=0), **table}


def _entry(value: float, first: float, last: float) -> dict[str, float | None]:
    return {"value": plain(value), "first": plain(first), "last": plain(last)}


def _mean(values: NDArray[np.float32]) -> float:
    """The mean of what is a number; nan if nothing is."""
    if not np.isfinite(values).any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(np.nanmean(values.astype(np.float64)))
