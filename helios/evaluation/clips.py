"""Clips from the renderer and through the codec, in batches small enough for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helios.data import to_frames
from helios.data.scenes import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from helios.codec import Codec
    from helios.data.scenes import Scene

__all__ = [
    "RENDER_BATCH",
    "autocast",
    "decode",
    "device_name",
    "encode",
    "film",
    "round_trip",
    "to_bytes",
]

RENDER_BATCH = 64
"""Clips per call of the renderer, which keeps a GPU busy; 160 MB at 128x192."""


def film(
    scenes: Sequence[Scene],
    *,
    start: int = 0,
    frames: int = 33,
    height: int = 128,
    width: int = 192,
    device: torch.device | str = "cpu",
    batch_size: int = RENDER_BATCH,
) -> Tensor:
    """Renders of ``scenes``, uint8 ``[B, frames, H, W, 3]`` on ``device``, compiled on CUDA."""
    where = torch.device(device)
    parts = [
        render(
            scenes[first : first + batch_size],
            start=start,
            frames=frames,
            height=height,
            width=width,
            device=where,
            compile=where.type == "cuda",
        )
        for first in range(0, len(scenes), batch_size)
    ]
    return torch.cat(parts)


def to_bytes(frames: Tensor) -> Tensor:
    """Float ``[B, T, 3, H, W]`` in [-1, 1] to bytes ``[B, T, H, W, 3]``."""
    levels = (frames.float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).movedim(2, -1)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where it is fast, exact elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def device_name(device: torch.device) -> str:
    """The device in words, for a report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


@torch.no_grad()
def encode(codec: Codec, frames: Tensor, batch_size: int = 16) -> Tensor:
    """Latents ``[B, 16, t, h, w]`` of one window per clip, uint8 ``[B, T, H, W, 3]``.

    The posterior's mean, so that the result depends on the frames alone.
    """
    parts = []
    for part in frames.split(batch_size):
        parts.append(codec.encode(to_frames(part.to(codec.device))))
    return torch.cat(parts)


@torch.no_grad()
def decode(codec: Codec, latents: Tensor, batch_size: int = 16) -> Tensor:
    """Bytes ``[B, T, H, W, 3]`` of latents ``[B, 16, t, h, w]``."""
    parts = []
    for part in latents.split(batch_size):
        parts.append(codec.decode_uint8(part))
    return torch.cat(parts)


def round_trip(codec: Codec, frames: Tensor, batch_size: int = 16) -> Tensor:
    """What the codec leaves of clips of up to 33 frames, uint8 ``[B, T, H, W, 3]``."""
    return decode(codec, encode(codec, frames, batch_size), batch_size)
