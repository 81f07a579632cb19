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

__all__ = ["CPU_ROWS", "ChannelNorm", "norm_silu", "root_norm"]

_TINY = 1e-12
"""Smallest norm divided by (the published constant)."""
CPU_ROWS = 4096
"""Pixels handled at a time on a CPU, so that the float32 intermediates stay in its cache."""


def _inverse_norm(rows: Tensor) -> Tensor:
    """1 / ||x|| over the last dimension, at least in float32; ``[..., 1]``."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide)
    return norm.clamp_min(_TINY).reciprocal()


def root_norm(rows: Tensor, gamma: Tensor) -> Tensor:
    """``u`` of the module's formula over the last dimension, in at least float32: no activation."""
    inverse = _inverse_norm(rows)
    return rows.to(inverse.dtype) * inverse * (gamma.to(inverse.dtype) * rows.shape[-1] ** 0.5)


def _plain(rows: Tensor, gamma: Tensor) -> Tensor:
    """RMS norm and SiLU of ``[N, C]``: the formula as it stands."""
    return F.silu(root_norm(rows, gamma)).to(rows.dtype)


def _gradients(rows: Tensor, gamma: Tensor, arriving: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``rows`` and ``gamma`` given that of ``_plain(rows, gamma)``."""
    root = rows.shape[-1] ** 0.5
    inverse = _inverse_norm(rows)
    unit = rows * inverse
    scale = gamma.to(inverse.dtype) * root
    hidden = unit * scale
    gate = hidden.sigmoid()
    slope = gate * (1 + hidden * (1 - gate)) * arriving
    d_gamma = (slope * unit).flatten(0, -2).sum(dim=0) * root
    slope = slope * scale
    d_rows = (slope - unit * (slope * unit).sum(dim=-1, keepdim=True)) * inverse
    return d_rows.to(rows.dtype), d_gamma.to(gamma.dtype)


@functools.cache
def _generated(formula: Callable[..., Any]) -> Callable[..., Any]:
    """``formula`` as generated kernels over ``[N, C]``: one for each ``C``, whatever ``N`` is."""
    compiled = torch.compile(formula)

    def call(rows: Tensor, gamma: Tensor, *arriving: Tensor) -> Any:
        # .data has no base: the kernel would be guarded by the base's shape, and made again for it.
        flat = [value.reshape(-1, value.shape[-1]).data for value in (rows, *arriving)]
        for value in flat:
            torch._dynamo.mark_dynamic(value, 0)
            torch._dynamo.mark_static(value, 1)
        gamma = gamma.data
        torch._dynamo.mark_static(gamma, 0)
        return compiled(flat[0], gamma, *flat[1:])

    return call


def _write(rows: Tensor, gamma: Tensor, out: Tensor) -> None:
    """Put ``_plain(rows, gamma)`` into ``out``, both ``[B, T, H, W, C]``."""
    if rows.device.type != "cpu":
        out.copy_(F.silu(root_norm(rows, gamma), inplace=True))
        return
    for clip, target in zip(rows, out):
        pixels, places = clip.reshape(-1, clip.shape[-1]), target.view(-1, clip.shape[-1])
        for some, place in zip(pixels.split(CPU_ROWS), places.split(CPU_ROWS)):
            place.copy_(F.silu(root_norm(some, gamma), inplace=True))


class _NormSiLU(torch.autograd.Function):
    """The module's formula on ``[B, T, H, W, C]``, after ``past`` frames of zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gamma: Tensor, past: int, compiled: bool) -> Tensor:
        ctx.save_for_backward(rows, gamma)
        ctx.past, ctx.compiled = past, compiled
        if compiled:
            value: Tensor = _generated(_plain)(rows, gamma).view(rows.shape)
            return F.pad(value, (0, 0, 0, 0, 0, 0, past, 0)) if past else value
        batch, frames, *rest = rows.shape
        padded = rows.new_empty(batch, past + frames, *rest)
        padded[:, :past] = 0
        _write(rows, gamma, padded[:, past:])
        return padded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, gamma = ctx.saved_tensors
        arriving = gradients[0][:, ctx.past :]
        formula = _generated(_gradients) if ctx.compiled else _gradients
        d_rows, d_gamma = formula(rows, gamma, arriving)
        return d_rows.view(rows.shape), d_gamma, None, None


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
    return _NormSiLU.apply(x.movedim(1, -1), gamma, past, compiled).movedim(-1, 1)


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
        return root_norm(rows, self.gamma.flatten()).to(x.dtype).movedim(-1, 1)

    def silu(self, x: Tensor, past: int = 0) -> Tensor:
        """``[B, C, T, H, W]`` normalised and activated, ``past`` zero frames in front."""
        return norm_silu(x, self.gamma.flatten(), past, self.compiled)
