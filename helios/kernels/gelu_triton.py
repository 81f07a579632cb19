"""GELU with or without bias and e4m3, in Triton."""
# Kernels are compiled by Triton, which has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="untyped-decorator,attr-defined"

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios.kernels.e4m3 import E4M3

__all__ = ["gelu", "gelu_e4m3", "share"]


INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def share(power):
    """``1 / (1 + 2^-power)``, by the two instructions that approximate exponentials and quotients.

    Written as such, the compiler would guard both against numbers that do not occur.
    """
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp2(-power))
    small = tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [-power], dtype=tl.float32, is_pure=True, pack=1
    )
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + small], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def gelu_kernel(
    x_ptr,
    bias_ptr,
    out_ptr,
    scale_ptr,
    width,
    BIAS: tl.constexpr,
    QUANTISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row, or without e4m3 one block of one row, of ``gelu(x + bias)``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        wide = (wide + bias).to(x.dtype).to(tl.float32)
    # Twice sqrt(2 / pi), times log2(e); and that times 0.044715.
    wide = wide * share(wide * (2.302208198 + 0.10294323957 * wide * wide))
    if QUANTISE:
        largest = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-12)
        tl.store(scale_ptr + row, largest / 448.0)
        # The largest becomes 448 but for its last bit, so nothing has to be cut off.
        wide = wide * (448.0 / largest)
    tl.store(out_ptr + row * width + column, wide.to(out_ptr.dtype.element_ty), mask=inside)


SLICE = 2048
"""Columns of one program where rows need not be seen whole."""


def _rowwise(x: Tensor, bias: Tensor | None, *, fp8: bool) -> tuple[Tensor, ...]:
    """``gelu(x + bias)``; with ``fp8`` as e4m3 values and their scales."""
    x = x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    out = torch.empty(x.shape, dtype=E4M3 if fp8 else x.dtype, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device) if fp8 else out
    block = triton.next_power_of_2(width)
    if not fp8:
        block = min(block, SLICE)
    gelu_kernel[(rows, triton.cdiv(width, block))](
        x,
        x if bias is None else bias,
        out,
        scales,
        width,
        BIAS=bias is not None,
        QUANTISE=fp8,
        BLOCK=block,
        num_warps=max(1, min(16, block // 1024)) if fp8 else 4,
    )
    return (out, scales) if fp8 else (out,)


def gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See :func:`helios.kernels.gelu`."""
    return _rowwise(x, bias, fp8=False)[0]


def gelu_e4m3(x: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """The same as values and scales."""
    return _rowwise(x, bias, fp8=True)
