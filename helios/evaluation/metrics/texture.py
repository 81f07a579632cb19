"""What blur and noise leave in a picture: re-blur ratio and the finest diagonal detail.

Frames are uint8 ``[..., T, H, W, 3]``; every function gives one value per frame, ``[..., T]``.
Source: specification "training", section 10.4 ("blur and noise residuals").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from helios.evaluation.metrics.pixel import grey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["frame_blur", "frame_noise"]

BOX = 9
"""Pixels over which a picture is averaged to see how much sharpness it had to lose."""

QUIET = 0.75
"""Share of the blocks, those with the least detail, that noise is read off."""
QUIET_OF_NORMAL = 0.5148366
"""Mean of the smallest 75 % of the absolute values of standard normal numbers:
``2 (φ(0) - φ(z)) / 0.75`` with ``z`` the 87.5 % point."""


def frame_blur(frames: Tensor) -> Tensor:
    """Share of neighbour differences that survive another blur, 0 (crisp) to 1 (nothing to lose).

    Each direction by itself: differences of the frame against those of the frame averaged over
    nine pixels; the worse direction counts (Crété, Dolmiere, Ladret, Nicolas 2007). A frame without
    any difference counts as 1.
    """
    values = grey(frames)
    planes = values.flatten(0, -3)[:, None]
    parts = []
    half = BOX // 2
    for axis, window, pad in (
        (-1, (1, BOX), (half, half, 0, 0)),
        (-2, (BOX, 1), (0, 0, half, half)),
    ):
        soft = F.avg_pool2d(F.pad(planes, pad, mode="replicate"), window, stride=1)
        sharp, left = planes.diff(dim=axis).abs(), soft.diff(dim=axis).abs()
        lost = (sharp - left).clamp_min(0).sum(dim=(-3, -2, -1))
        total = sharp.sum(dim=(-3, -2, -1))
        parts.append(torch.where(total > 0, 1 - lost / total.clamp_min(1e-12), 1.0))
    return torch.maximum(*parts).view(values.shape[:-2])


def frame_noise(frames: Tensor) -> Tensor:
    """Standard deviation of white noise in levels of 255, by the finest diagonal detail.

    The mean of the smallest three quarters of ``|a - b - c + d| / 2`` over blocks of 2 x 2 pixels
    of the grey frame, over what it is for white noise: edges and textures are in the other quarter.
    (The median of Donoho and Johnstone 1994 moves in steps where noise is below one level.)
    """
    values = grey(frames)[..., : frames.shape[-3] // 2 * 2, : frames.shape[-2] // 2 * 2]
    blocks = values.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))
    a, b = blocks[..., 0, :, 0], blocks[..., 0, :, 1]
    c, d = blocks[..., 1, :, 0], blocks[..., 1, :, 1]
    detail = ((a - b - c + d) / 2).abs().flatten(-2)
    quiet = detail.sort(dim=-1).values[..., : round(QUIET * detail.shape[-1])]
    return quiet.mean(dim=-1) / QUIET_OF_NORMAL
