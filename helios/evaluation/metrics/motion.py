"""How much a video moves and how smoothly, by optical flow.

Values are per pair of neighbouring frames or per frame between two others. HeliosBench estimates
amplitude with Farnebäck's flow and re-synthesises dropped frames with a network; here the same flow
does both (specification "training", 9.1; magnitudes, not signed components, are averaged: 11, F34).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from helios.evaluation.metrics.flow import flow, warp
from helios.evaluation.metrics.pixel import grey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["REFERENCE_WIDTH", "pair_motion", "triple_smoothness"]

REFERENCE_WIDTH = 640
"""Motion is told in pixels of a picture this wide, whatever the size: the benchmark's own."""
PAIRS = 512
"""Pairs whose flow is found at once, which bounds the memory it takes."""
WORKING_WIDTH = 256
"""Wider pictures are made smaller before the flow: motion is coarse, and time is not free."""


def pair_motion(frames: Tensor) -> Tensor:
    """Mean length of the flow between neighbours, in pixels of a 640 pixels wide picture.

    Args:
        frames: uint8 ``[..., T, H, W, 3]``.

    Returns:
        ``[..., T - 1]``.
    """
    values, factor = _working(grey(frames))
    pairs = (*values.shape[:-3], values.shape[-3] - 1)
    one, two = values[..., :-1, :, :].flatten(0, -3), values[..., 1:, :, :].flatten(0, -3)
    parts = zip(one.split(PAIRS), two.split(PAIRS), strict=True)
    length = torch.cat([flow(*part).norm(dim=1).mean(dim=(-2, -1)) for part in parts])
    return length.view(pairs) * (factor * REFERENCE_WIDTH / frames.shape[-2])


def triple_smoothness(before: Tensor, between: Tensor, after: Tensor) -> Tensor:
    """How well frames follow from their neighbours: ``1 - mean |I - Î| / 255``.

    ``Î`` is half way along the flow from ``before`` to ``after``, from both ends.

    Args:
        before: uint8 ``[N, H, W, 3]``.
        between: the frame in the middle, the same shape.
        after: likewise.

    Returns:
        ``[N]``.
    """
    size = before.shape[-3:-1]
    (first, factor), (last, _) = _working(grey(before)), _working(grey(after))
    path = flow(first, last) * factor
    path = F.interpolate(path, size, mode="bilinear") / 2
    made = (warp(_planes(before), -path) + warp(_planes(after), path)) / 2
    error = (made - _planes(between)).abs().mean(dim=(-3, -2, -1))
    return 1 - error / 255


def _planes(frames: Tensor) -> Tensor:
    return frames.movedim(-1, 1).float()


def _working(values: Tensor) -> tuple[Tensor, float]:
    """Pictures at most ``WORKING_WIDTH`` wide, and pixels of the original per pixel of theirs."""
    height, width = values.shape[-2:]
    if width <= WORKING_WIDTH:
        return values, 1.0
    factor = width / WORKING_WIDTH
    size = (max(16, round(height / factor)), WORKING_WIDTH)
    small = F.interpolate(values.flatten(0, -3)[:, None], size, mode="area")
    return small[:, 0].view(*values.shape[:-2], *size), factor
