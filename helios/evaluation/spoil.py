"""Known damage of a known strength, one at a time: frames as bytes in, frames as bytes out.

Unlike `helios.evaluation.degrade`, which draws harmless damage at random, these are what metrics
and models are tested with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helios.evaluation.clips import to_bytes
from helios.evaluation.degrade import blur
from helios.evaluation.metrics.scene_judge import to_input

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_noise", "brighten", "saturate", "soften", "warm"]


def add_noise(frames: Tensor, seed: int, levels: float) -> Tensor:
    """White noise of ``levels`` of 255 on every channel of ``[..., H, W, 3]``."""
    generator = torch.Generator(frames.device).manual_seed(seed)
    drawn = torch.randn(frames.shape, generator=generator, device=frames.device)
    return _bytes(frames.float() + levels * drawn)


def soften(frames: Tensor, sigma: float) -> Tensor:
    """Blur of ``sigma`` pixels; none for 0 and below. ``[B, T, H, W, 3]``."""
    return frames if sigma <= 0 else to_bytes(blur(to_input(frames), sigma))


def saturate(frames: Tensor, factor: float) -> Tensor:
    """Distance from grey times ``factor``, ``[..., 3]``."""
    values = frames.float()
    grey = values.mean(dim=-1, keepdim=True)
    return _bytes(torch.lerp(grey, values, factor))


def brighten(frames: Tensor, levels: float) -> Tensor:
    """``levels`` of 255 more everywhere."""
    return _bytes(frames.float() + levels)


def warm(frames: Tensor, levels: float) -> Tensor:
    """``levels`` of 255 more red and less blue, ``[..., 3]``."""
    return _bytes(frames.float() + torch.tensor([levels, 0.0, -levels], device=frames.device))


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
