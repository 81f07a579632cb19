"""Rotary positions: turning pairs of channels by the angle of a token's place."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_rope"]


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
