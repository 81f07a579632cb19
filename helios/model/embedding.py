"""Timestep and text projections."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.model.config import TransformerConfig

__all__ = ["TextProjection", "TimeEmbedding"]


class TimeEmbedding(nn.Module):
    """Timesteps to the vectors that modulate blocks and head (section 5 of the specification).

    The sinusoid and the two layers after it are float32 islands: a timestep near 1000 differs
    from its neighbour by less than bfloat16 can tell.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.linear1 = nn.Linear(config.freq_dim, config.width)
        self.linear2 = nn.Linear(config.width, config.width)
        self.project = nn.Linear(config.width, 6 * config.width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Modulation of the head ``[B, D]`` and of the blocks ``[B, 6, D]``, both in ``dtype``.

        Args:
            timestep: ``[B]``, any real dtype, on the scale 0 to 1000.
            dtype: of the tokens.
        """
        with _without_autocast(timestep.device.type):
            waves = sinusoid(timestep, self.freq_dim).to(self.linear1.weight.dtype)
            head = self.linear2(F.silu(self.linear1(waves))).to(dtype)
        return head, self.project(F.silu(head)).unflatten(-1, (6, -1))


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Full precision inside; a device that knows no autocast (meta) needs nothing."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """``[cos(t f), sin(t f)]`` with ``f[i] = 10000 ** (-2 i / width)``, ``[B, width]`` float32."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep[:, None].float() * torch.exp(-math.log(10000) * steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TextProjection(nn.Module):
    """Text embeddings to the width of the transformer (section 4 of the specification)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.text_dim, config.width)
        self.linear2 = nn.Linear(config.width, config.width)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, L, text_dim]`` to ``[B, L, D]``."""
        return self.linear2(F.gelu(self.linear1(text), approximate="tanh"))
