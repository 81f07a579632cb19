"""Rotary positions: turning pairs of channels by the angle of a token's place."""

from __future__ import annotations

import torch
from torch import Tensor

from helios.kernels.dispatch import run, uses_triton
from helios.kernels.e4m3 import E4M3, E4M3_MAX
from helios.kernels.norm import plain_rms_norm

__all__ = ["apply_rope", "bound_factor", "norm_rope", "norm_rope_e4m3"]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channels ``(x[2j], x[2j+1])`` of every head.

    ``out[2j] = x[2j] cos[j] - x[2j+1] sin[j]`` and ``out[2j+1] = x[2j] sin[j] + x[2j+1] cos[j]``,
    in float32 with one rounding at the end (specification "model and sampling", section 2.5).

    Args:
        x: ``[B, L, H, d]``; the result has its shape and dtype.
        cos: ``[L, d / 2]`` float32, the same for all heads and samples, or ``[B, L, d / 2]``.
        sin: likewise.
    """
    # Eager CPU code runs strided halves one number at a time, complex products in vectors; the
    # compiler fuses the former and cannot see into the latter.
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _turn_complex(x, cos, sin)
    return _turn_pairs(x, cos, sin)


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """:func:`rms_norm` over all heads together, then :func:`apply_rope`, as queries and keys need.

    Args:
        x: ``[B, L, H * d]``, any float dtype, which is also that of what is rotated.
        weight: ``[H * d]`` gains of the norm.
        cos: ``[L, d / 2]`` float32, or ``[B, L, d / 2]``.
        sin: likewise.
        eps: added to the mean square.

    Returns:
        ``[B, L, H, d]`` in the dtype of ``x``.
    """
    if uses_triton(x):
        from helios.kernels import rope_triton

        return run(rope_triton.norm_rope, plain_norm_rope, x, weight, cos, sin, eps)
    return plain_norm_rope(x, weight, cos, sin, eps)


def plain_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """The formula of :func:`norm_rope`, with the published rounding between norm and rotation.

    The Triton form rounds once.
    """
    heads = plain_rms_norm(x, weight, eps).unflatten(-1, (-1, 2 * cos.shape[-1]))
    return apply_rope(heads, cos, sin)


@torch.no_grad()
def norm_rope_e4m3(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, factor: Tensor
) -> Tensor:
    """:func:`norm_rope` times a factor per head, in e4m3 and without gradient.

    Args:
        x: ``[B, L, H * d]``.
        weight: ``[H * d]`` gains of the norm.
        cos: ``[L, d / 2]`` float32, or ``[B, L, d / 2]``.
        sin: likewise.
        eps: added to the mean square.
        factor: ``[H]`` float32; see :func:`bound_factor`.

    Returns:
        ``[B, L, H, d]`` of dtype ``float8_e4m3fn``.
    """
    if uses_triton(x):
        from helios.kernels import rope_triton

        return rope_triton.norm_rope_e4m3(x, weight, cos, sin, eps, factor)
    normal = plain_rms_norm(x.float(), weight, eps).unflatten(-1, (-1, 2 * cos.shape[-1]))
    heads = apply_rope(normal, cos, sin) * factor[:, None]
    return heads.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


@torch.no_grad()
def bound_factor(weight: Tensor, heads: int) -> Tensor:
    """The factor per head ``[H]`` with which no normalised and rotated number leaves e4m3.

    A channel of a root-mean-square norm over ``D`` channels is at most ``sqrt(D)`` times its gain,
    and rotating a pair of them does not lengthen it; so the bound needs no look at the tokens.
    Numbers of usual size come to lie near 6, where e4m3 still has 12 binary orders below it.

    Args:
        weight: ``[D]`` gains of the norm.
        heads: number of heads.
    """
    gains = weight.float().abs().view(heads, -1).amax(dim=1).clamp(min=1e-6)
    return E4M3_MAX / (weight.numel() ** 0.5 * gains)


def _turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula as written."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = torch.stack((even * c - odd * s, even * s + odd * c), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _turn_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same as a product of complex numbers ``(even + i odd)(cos + i sin)``."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pairs * torch.complex(cos, sin).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
