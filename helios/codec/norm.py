"""RMS norm over channels with SiLU, written straight into the padded input of a causal convolution.

With ``x_c`` the channels of one pixel and ``C`` their number,

    n_c = x_c / max(||x||, 1e-12),   u_c = n_c * sqrt(C) * gamma_c,   y_c = u_c * sigmoid(u_c).

Autograd would keep some five tensors of this; here only ``x`` is kept and the rest is computed
again on the way back, which is what lets a batch of clips train at full resolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelNorm", "norm_silu"]

_TINY = 1e-12
"""Smallest norm divided by (the published constant)."""
_CPU_ROWS = 4096
"""Pixels handled at a time on a CPU, so that the float32 intermediates stay in its cache."""


def _inverse_norm(rows: Tensor) -> Tensor:
    """1 / ||x|| over the last dimension, at least in float32; ``[..., 1]``."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide)
    return norm.clamp_min(_TINY).reciprocal()


def _norm(rows: Tensor, gamma: Tensor) -> Tensor:
    """``u`` of the module's formula over the last dimension, in at least float32."""
    inverse = _inverse_norm(rows)
    return rows.to(inverse.dtype) * inverse * (gamma.to(inverse.dtype) * rows.shape[-1] ** 0.5)


def _plain(rows: Tensor, gamma: Tensor) -> Tensor:
    """RMS norm and SiLU of ``[N, C]``: the formula as it stands."""
    return F.silu(_norm(rows, gamma)).to(rows.dtype)


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor], Tensor]:
    """``_plain`` as one generated kernel for each ``C``, whatever ``N`` is."""
    return torch.compile(_plain, dynamic=True)


def _write(rows: Tensor, gamma: Tensor, out: Tensor) -> None:
    """Put ``_plain(rows, gamma)`` into ``out``, both ``[B, T, H, W, C]``."""
    if rows.device.type != "cpu":
        out.copy_(F.silu(_norm(rows, gamma), inplace=True))
        return
    for clip, target in zip(rows, out):
        pixels, places = clip.reshape(-1, clip.shape[-1]), target.view(-1, clip.shape[-1])
        for some, place in zip(pixels.split(_CPU_ROWS), places.split(_CPU_ROWS)):
            place.copy_(F.silu(_norm(some, gamma), inplace=True))


class _NormSiLU(torch.autograd.Function):
    """The module's formula on ``[B, T, H, W, C]``, after ``past`` frames of zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gamma: Tensor, past: int) -> Tensor:
        ctx.save_for_backward(rows, gamma)
        ctx.past = past
        batch, frames, *rest = rows.shape
        padded = rows.new_empty(batch, past + frames, *rest)
        padded[:, :past] = 0
        _write(rows, gamma, padded[:, past:])
        return padded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, gamma = ctx.saved_tensors
        root = rows.shape[-1] ** 0.5
        inverse = _inverse_norm(rows)
        unit = rows * inverse
        scale = gamma.to(inverse.dtype) * root
        hidden = unit * scale
        gate = hidden.sigmoid()
        slope = gate * (1 + hidden * (1 - gate)) * gradients[0][:, ctx.past :]
        d_gamma = (slope * unit).sum(dim=(0, 1, 2, 3)) * root
        slope *= scale
        d_rows = (slope - unit * (slope * unit).sum(dim=-1, keepdim=True)) * inverse
        return d_rows.to(rows.dtype), d_gamma.to(gamma.dtype), None


def norm_silu(x: Tensor, gamma: Tensor, past: int = 0, compiled: bool = False) -> Tensor:
    """RMS norm over channels, then SiLU, with ``past`` zero frames put in front.

    Args:
        x: ``[B, C, T, H, W]``, fastest in channels-last layout.
        gamma: ``[C]`` gains.
        past: zero frames the causal convolution that follows wants to see before the first.
        compiled: use a generated kernel (for a GPU); the same formula.

    Returns:
        ``[B, C, past + T, H, W]`` in channels-last layout and the dtype of ``x``.
    """
    rows = x.movedim(1, -1)
    if compiled:
        value = _compiled()(rows.reshape(-1, rows.shape[-1]), gamma).view(rows.shape)
        if past:
            value = F.pad(value, (0, 0, 0, 0, 0, 0, past, 0))
    else:
        value = _NormSiLU.apply(rows, gamma, past)
    return value.movedim(-1, 1)


class ChannelNorm(nn.Module):
    """RMS norm over the channels of a pixel, with a gain for each.

    Args:
        channels: how many.
        dims: dimensions after the channels in the published shape of ``gamma``.
    """

    compiled: bool = False

    def __init__(self, channels: int, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *([1] * dims)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[B, C, ...]`` without activation."""
        rows = x.movedim(1, -1)
        return _norm(rows, self.gamma.flatten()).to(x.dtype).movedim(-1, 1)

    def silu(self, x: Tensor, past: int = 0) -> Tensor:
        """``[B, C, T, H, W]`` normalised and activated, ``past`` zero frames in front."""
        return norm_silu(x, self.gamma.flatten(), past, self.compiled)
