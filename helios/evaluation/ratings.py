"""The benchmark's grades: a score from 1 to 10 by bands, and the weights of the total.

Source: specification "training", section 9.1. One band of the published list is out of order (11,
F32) and an exact zero counted as missing there (F33); neither is repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["LONG", "SHORT", "missing_for", "rating", "throughput_rating", "total"]


def _falling(first: float, step: float) -> tuple[float, ...]:
    return tuple(round(first - step * k, 4) for k in range(9))


_AT_LEAST: dict[str, tuple[float, ...]] = {
    "aesthetic": _falling(0.70, 0.05),
    "amplitude": _falling(0.45, 0.05),
    "smoothness": _falling(0.99, 0.01),
    "semantic": _falling(0.30, 0.01),
    "naturalness": (0.65, 0.60, 0.55, 0.50, 0.45, 0.40, 0.30, 0.25, 0.20),
}
_SMALL_DRIFT = tuple(round(0.01 * k, 2) for k in range(1, 10))
_AT_MOST: dict[str, tuple[float, ...]] = {
    "drift aesthetic": _SMALL_DRIFT,
    "drift smoothness": _SMALL_DRIFT,
    "drift semantic": _SMALL_DRIFT,
    "drift naturalness": tuple(round(0.06 + 0.02 * k, 2) for k in range(9)),
}

SHORT: dict[str, float] = {
    "semantic": 0.35,
    "naturalness": 0.35,
    "aesthetic": 0.10,
    "amplitude": 0.10,
    "smoothness": 0.10,
}
LONG: dict[str, float] = {
    "semantic": 0.255,
    "naturalness": 0.255,
    "drift aesthetic": 0.099,
    "drift smoothness": 0.099,
    "drift semantic": 0.099,
    "drift naturalness": 0.099,
    "aesthetic": 0.03,
    "amplitude": 0.03,
    "smoothness": 0.03,
}
"""Published as they are: they add up to 0.996."""


def rating(name: str, score: float) -> int:
    """10 for the best band, then 9 and so on; 1 below all of them.

    Args:
        name: a key of ``LONG``.
        score: what was measured, in 0 to 1; amplitude in pixels per frame at 640 pixels width.

    Raises:
        ValueError: for an unknown name or a score that is not a number.
    """
    if not math.isfinite(score):
        raise ValueError(f"{name} has no score to rate")
    if name in _AT_LEAST:
        held = [score >= bound for bound in _AT_LEAST[name]]
    elif name in _AT_MOST:
        held = [score <= bound for bound in _AT_MOST[name]]
    else:
        raise ValueError(f"{name!r} is not rated; rated are {', '.join((*_AT_LEAST, *_AT_MOST))}")
    return 10 - held.index(True) if True in held else 1


def throughput_rating(fps: float) -> int:
    """``ceil(fps / 3.2)`` between 1 and 10."""
    return int(min(10, max(1, math.ceil(fps / 3.2))))


def missing_for(ratings: Mapping[str, int], weights: Mapping[str, float]) -> list[str]:
    """What the total still needs."""
    return [name for name in weights if name not in ratings]


def total(
    ratings: Mapping[str, int], weights: Mapping[str, float], fps: float | None = None
) -> float | None:
    """The weighted sum, with a tenth of the throughput rating on top where ``fps`` is given.

    Returns:
        None if a rating is missing: a total of a part would be compared with totals of the whole.
    """
    if missing_for(ratings, weights):
        return None
    value = sum(weight * ratings[name] for name, weight in weights.items())
    return value if fps is None else value + 0.1 * throughput_rating(fps)
