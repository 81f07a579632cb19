"""Where chunks meet: jumps at their borders, and returns towards the first frame.

Both are read off two numbers per frame that any length of video can keep: how far a frame is from
the one before it, and how far from the first (specification "training", section 10.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from helios.geometry import CHUNK_FRAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["boundary_flicker", "difference", "snap_back", "snap_rate"]

JUMP = 3.0
"""A border counts as a snap if it returns by this many median steps."""
STILL = 0.05
"""Steps below this (levels of 255) are rounding: a video of them has no motion to compare with."""


def difference(frames: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference in levels of 255, ``[..., T]`` of ``[..., T, H, W, 3]``.

    ``others`` may have one frame where ``frames`` has many.
    """
    return (frames.int() - others.int()).abs().float().mean(dim=(-3, -2, -1))


def boundary_flicker(steps: NDArray[np.float32], chunk: int = CHUNK_FRAMES) -> float:
    """Mean step across borders over the median step inside chunks; 1 is seamless.

    Args:
        steps: difference of each frame from the one before it, ``[T]``; the first is not used.
        chunk: frames per chunk.

    Returns:
        nan for a video without a border.
    """
    border, inside = _borders(len(steps), chunk)
    if not border.any() or not inside.any():
        return float("nan")
    return float(steps[border].mean() / max(float(np.median(steps[inside])), STILL))


def snap_back(away: NDArray[np.float32], chunk: int = CHUNK_FRAMES) -> float:
    """Mean fall of the distance from the first frame at borders, in mean changes inside chunks.

    0 where a border is like any other moment; positive where chunks begin closer to the first frame
    than the last one ended, as positions that start again make them (section 9.4). The border after
    the first chunk is left out: there the first frame is still most of what is remembered.

    Args:
        away: difference of each frame from the first one, ``[T]``.
        chunk: frames per chunk.

    Returns:
        nan for a video of fewer than three chunks.
    """
    falls, usual = _falls(away, chunk, np.mean)
    return float(falls.mean() / usual) if len(falls) else float("nan")


def snap_rate(away: NDArray[np.float32], chunk: int = CHUNK_FRAMES) -> float:
    """Share of borders at which that distance falls by more than three median changes."""
    falls, usual = _falls(away, chunk, np.median)
    return float((falls > JUMP * usual).mean()) if len(falls) else float("nan")


def _falls(
    away: NDArray[np.float32], chunk: int, average: Callable[[NDArray[np.float32]], Any]
) -> tuple[NDArray[np.float32], float]:
    change = np.diff(away, prepend=away[:1])
    border, inside = _borders(len(away), chunk)
    border[: 2 * chunk] = False
    usual = float(average(np.abs(change[inside]))) if inside.any() else 0.0
    return -change[border], max(usual, STILL)


def _borders(frames: int, chunk: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    index = np.arange(frames)
    border = (index % chunk == 0) & (index > 0)
    return border, ~border & (index > 0)
