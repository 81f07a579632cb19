"""Numbers of eight bits with a scale per row: what fp8 products read.

``x ≈ values * scale`` with ``scale = max|x| / 448`` for every row, so that the largest number of a
row becomes the largest one of e4m3 (4 exponent and 3 mantissa bits).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from helios.kernels.dispatch import uses_triton
from helios.kernels.e4m3 import E4M3, E4M3_MAX

__all__ = ["SMALLEST", "Rows", "Scaled", "quantise_rows"]

SMALLEST = 1e-12
"""What the largest number of a row counts as if it is smaller."""


@dataclass(frozen=True)
class Scaled:
    """A matrix in e4m3 with one scale per row.

    Attributes:
        values: ``[..., K]`` of dtype ``float8_e4m3fn``.
        scale: ``[..., 1]`` float32.
    """

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the values."""
        return self.values.shape

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``values * scale``, rounded once."""
        return (self.values.float() * self.scale).to(dtype)

    def tokens(self, start: int) -> Scaled:
        """Of ``[B, L, K]`` the tokens from ``start`` on."""
        return Scaled(self.values[:, start:], self.scale[:, start:])


Rows = Tensor | Scaled
"""Input of a matrix product: in full, or already in eight bits."""


def quantise_rows(x: Tensor, offset: Tensor | None = None) -> Scaled:
    """``x``, or ``x + offset``, in e4m3, every row of the last axis with a scale of its own.

    Args:
        x: ``[..., K]``, any float dtype; ``[B, L, K]`` with an offset. No gradient flows.
        offset: ``[B, K]`` float32, added to every row of a sample.
    """
    if uses_triton(x):
        from helios.kernels.scaled_triton import quantise_rows as fast

        return Scaled(*fast(x.detach(), offset))
    return plain_quantise_rows(x if offset is None else x.float() + offset[:, None])


@torch.no_grad()
def plain_quantise_rows(x: Tensor) -> Scaled:
    """The formula."""
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST)
    values = (wide * (E4M3_MAX / largest)).clamp(-E4M3_MAX, E4M3_MAX)
    return Scaled(values.to(E4M3), largest / E4M3_MAX)
