"""The nonlinearity of the feed-forward network."""

from __future__ import annotations

from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor

from helios.kernels.dispatch import run, uses_triton
from helios.kernels.scaled import Rows, Scaled, plain_quantise_rows

__all__ = ["gelu"]


@overload
def gelu(x: Tensor, bias: Tensor | None = ..., *, fp8: Literal[False] = ...) -> Tensor: ...


@overload
def gelu(x: Tensor, bias: Tensor | None = ..., *, fp8: bool) -> Rows: ...


def gelu(x: Tensor, bias: Tensor | None = None, *, fp8: bool = False) -> Rows:
    """``u Φ(u)`` of ``u = x + bias`` in its tanh form: ``u / (1 + exp(-2 t))`` with
    ``t = sqrt(2 / π) (u + 0.044715 u³)``.

    Args:
        x: ``[..., K]``; the result has its shape and dtype.
        bias: ``[K]``, added before and rounded to the dtype of ``x``.
        fp8: give e4m3 with a scale per row instead, without rounding in between.
    """
    if uses_triton(x):
        from helios.kernels import gelu_triton

        if fp8:
            return Scaled(*gelu_triton.gelu_e4m3(x, bias))
        return run(gelu_triton.gelu, plain_gelu, x, bias)
    if fp8:
        biased = x if bias is None else x + bias
        return plain_quantise_rows(F.gelu(biased.float(), approximate="tanh"))
    return plain_gelu(x, bias)


def plain_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """The formula."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")
