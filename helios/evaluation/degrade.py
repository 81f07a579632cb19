"""Harmless damage: what a generated video may lack without showing something else.

The judge is trained on damaged renders so that softness, noise or a slight cast of colour in a
generated video is not what decides its verdict. Every form keeps objects, motion and setting; half
of the clips stay sharp, because highlights (material) and edges (shape) are small.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["blur", "degrade"]

SHIFT = 8
"""Largest displacement of the whole clip, in pixels."""


def degrade(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Damage each clip of a batch at random: about half of them stay sharp.

    Args:
        frames: float ``[B, T, 3, H, W]`` in [-1, 1].
        generator: on the device of ``frames``.

    Returns:
        The same shape, clamped to [-1, 1].
    """
    frames = _displace(_mirror(frames, generator), generator)
    frames = _colour(frames, generator)
    frames = _soften(frames, generator)
    frames = _noise(frames, generator)
    return frames.clamp(-1, 1)


def blur(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every frame, ``[..., H, W]``, ``sigma`` in pixels, edges repeated."""
    radius = max(1, round(2.5 * sigma))
    offset = torch.arange(-radius, radius + 1, device=frames.device, dtype=frames.dtype)
    weight = torch.exp(-0.5 * (offset / sigma).square())
    weight = weight / weight.sum()
    planes = frames.reshape(-1, 1, *frames.shape[-2:])
    planes = F.pad(planes, (radius, radius, radius, radius), mode="replicate")
    planes = F.conv2d(planes, weight.view(1, 1, 1, -1))
    return F.conv2d(planes, weight.view(1, 1, -1, 1)).view(frames.shape)


def _uniform(
    frames: Tensor, generator: torch.Generator, low: float, high: float, *, channels: int = 1
) -> Tensor:
    """One value per clip (and channel), shaped to multiply ``frames``."""
    draw = torch.rand(len(frames), 1, channels, 1, 1, generator=generator, device=frames.device)
    return low + (high - low) * draw


def _mirror(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Left and right exchanged in half of the clips: no attribute of a scene knows them."""
    return torch.where(_uniform(frames, generator, 0, 1) < 0.5, frames.flip(-1), frames)


def _displace(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Move the picture by up to ``SHIFT`` pixels, the same for the whole batch."""
    height, width = frames.shape[-2:]
    draws = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator, device=frames.device)
    top, left = draws.tolist()
    padded = F.pad(frames.flatten(0, 1), (SHIFT,) * 4, mode="replicate")
    return padded[..., top : top + height, left : left + width].view(frames.shape)


def _colour(frames: Tensor, generator: torch.Generator) -> Tensor:
    contrast = _uniform(frames, generator, 0.88, 1.1)
    brightness = _uniform(frames, generator, -0.1, 0.1)
    cast = _uniform(frames, generator, 0.96, 1.04, channels=3)
    return (frames * contrast + brightness + 1) * cast - 1


def _soften(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Mix each clip with its blurred self; half keep none of the blur."""
    sigma = 0.5 + 1.5 * torch.rand((), generator=generator, device=frames.device).item()
    amount = _uniform(frames, generator, -1, 1).clamp_min(0)
    return torch.lerp(frames, blur(frames, sigma), amount)


def _noise(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Fine grain, slow blotches and coarse steps of brightness, each in some of the clips."""
    batch, time, channels, height, width = frames.shape
    fine = torch.randn(frames.shape, generator=generator, device=frames.device)
    coarse = torch.randn(
        batch * time, channels, height // 8, width // 8, generator=generator, device=frames.device
    )
    blotches = F.interpolate(coarse, (height, width), mode="bilinear").view(frames.shape)
    frames = frames + fine * _uniform(frames, generator, -0.08, 0.08).clamp_min(0)
    frames = frames + blotches * _uniform(frames, generator, -0.1, 0.1).clamp_min(0)
    levels = _uniform(frames, generator, 16, 80)
    stepped = (frames * levels).round() / levels
    return torch.where(_uniform(frames, generator, 0, 1) < 0.15, stepped, frames)
