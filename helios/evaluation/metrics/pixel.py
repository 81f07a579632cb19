"""Metrics that need no network: differences from a reference, and plain image statistics.

Frames are uint8 ``[..., T, H, W, 3]``; the leading axes are clips and every metric gives one value
per clip, those called ``frame_...`` one per frame. Source: specification "training", section 10.4;
the peak is 255.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "brightness",
    "frame_saturation",
    "frame_sharpness",
    "grey",
    "moving_pixels",
    "moving_psnr",
    "psnr",
    "saturation",
    "sharpness",
]

PEAK = 255.0


def psnr(frames: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per clip in dB, ``10 log10(255² / MSE)``; equal clips give inf.

    Args:
        frames: uint8 ``[..., T, H, W, 3]``.
        reference: the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    return _decibel(_squared_error(frames, reference).mean(dim=(-4, -3, -2, -1)))


def moving_psnr(frames: Tensor, reference: Tensor, threshold: float = 12.0) -> Tensor:
    """The same ratio over the pixels that move in ``reference``; nan where none does.

    A static background hides what happens to a small object; this is the figure without it.
    """
    moving = moving_pixels(reference, threshold).unsqueeze(-1)
    error = (_squared_error(frames, reference) * moving).sum(dim=(-4, -3, -2, -1))
    return _decibel(error / (moving.sum(dim=(-4, -3, -2, -1)) * 3))


def moving_pixels(frames: Tensor, threshold: float = 12.0) -> Tensor:
    """Pixels whose colour leaves the clip's mean frame by more than ``threshold`` of 255.

    Args:
        frames: ``[..., T, H, W, 3]``.
        threshold: largest difference of the three channels that still counts as standing still.

    Returns:
        bool ``[..., T, H, W]``.
    """
    values = frames.float()
    return (values - values.mean(dim=-4, keepdim=True)).abs().amax(dim=-1) > threshold


def brightness(frames: Tensor) -> Tensor:
    """Mean of all values, 0 to 1."""
    return frames.float().mean(dim=(-4, -3, -2, -1)) / PEAK


def saturation(frames: Tensor) -> Tensor:
    """Mean of (largest − smallest channel) / largest channel, 0 to 1; black counts as 0."""
    return frame_saturation(frames).mean(dim=-1)


def frame_saturation(frames: Tensor) -> Tensor:
    """The same for every frame, ``[..., T]``."""
    values = frames.float()
    largest = values.amax(dim=-1)
    spread = largest - values.amin(dim=-1)
    return (spread / largest.clamp_min(1.0)).mean(dim=(-2, -1))


def sharpness(frames: Tensor) -> Tensor:
    """Variance of the Laplacian of the grey frame, values in 0 to 1; blur lowers it."""
    return frame_sharpness(frames).mean(dim=-1)


def frame_sharpness(frames: Tensor) -> Tensor:
    """The same for every frame, ``[..., T]``."""
    values = grey(frames) / PEAK
    centre = values[..., 1:-1, 1:-1]
    neighbours = (
        values[..., :-2, 1:-1]
        + values[..., 2:, 1:-1]
        + values[..., 1:-1, :-2]
        + values[..., 1:-1, 2:]
    )
    return (neighbours - 4 * centre).var(dim=(-2, -1), correction=0)


def grey(frames: Tensor) -> Tensor:
    """Mean of the three channels, float32 ``[..., T, H, W]``, 0 to 255."""
    return frames.float().mean(dim=-1)


def _squared_error(frames: Tensor, reference: Tensor) -> Tensor:
    if frames.shape != reference.shape:
        raise ValueError(
            f"frames {tuple(frames.shape)} and reference {tuple(reference.shape)} differ in shape"
        )
    return (frames.float() - reference.float()).square()


def _decibel(error: Tensor) -> Tensor:
    return 10 * torch.log10(PEAK**2 / error)
