"""The sum of a block's residual stream, its norm, modulation and e4m3 in one pass, in Triton.

The formulas and what the arguments mean stand in ``stream``; how a program goes through the tokens,
in ``norm_triton``.
"""
# Kernels are compiled by Triton, which has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="untyped-decorator,attr-defined"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios.kernels.norm_triton import tokens_for, warps_for
from helios.kernels.scaled import E4M3

__all__ = ["normalised", "total"]

GAINS, MODULATION = 1, 2
"""What follows the norm."""


@triton.jit
def stream_kernel(
    x_ptr,
    update_ptr,
    gate_ptr,
    read_ptr,
    last_ptr,
    last_gate_ptr,
    first_ptr,
    second_ptr,
    out_ptr,
    scale_ptr,
    length,
    split,
    start,
    width,
    eps,
    x_batch,
    x_row,
    update_batch,
    update_row,
    gate_batch,
    gate_part,
    read_batch,
    read_row,
    last_batch,
    last_row,
    last_gate_batch,
    last_gate_part,
    table_batch,
    table_part,
    READ: tl.constexpr,
    LAST: tl.constexpr,
    AFTER: tl.constexpr,
    QUANTISE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows ``x + update * gate (+ read) (+ last * last_gate)`` in float32, then their layer norm
    and its affine map unless ``AFTER`` is 0; rounded once.

    ``first`` and ``second`` are the gains and offsets, or the scale and shift of the part.
    """
    sample = tl.program_id(1)
    group = tl.program_id(0)
    groups_before = tl.cdiv(split, TOKENS)
    noisy = group >= groups_before
    begin = tl.where(noisy, split + (group - groups_before) * TOKENS, group * TOKENS)
    end = tl.minimum(begin + TOKENS, tl.where(noisy, length, split))
    part = noisy.to(tl.int32)

    column = tl.arange(0, BLOCK)
    inside = column < width
    gate_at = gate_ptr + sample * gate_batch + part * gate_part + column
    last_gate_at = last_gate_ptr + sample * last_gate_batch + part * last_gate_part + column
    table_at = sample * table_batch + part * table_part + column

    for index in range(end - begin):
        row = begin.to(tl.int64) + index
        x = tl.load(x_ptr + sample * x_batch + row * x_row + column, mask=inside, other=0.0)
        place = sample * update_batch + row * update_row + column
        update = tl.load(update_ptr + place, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(gate_at, mask=inside, other=0.0, eviction_policy="evict_last")
        wide = x.to(tl.float32) + update * gate
        if READ:
            there = inside & (row >= start)
            place = sample * read_batch + (row - start) * read_row + column
            wide += tl.load(read_ptr + place, mask=there, other=0.0).to(tl.float32)
        if LAST:
            place = sample * last_batch + row * last_row + column
            last = tl.load(last_ptr + place, mask=inside, other=0.0).to(tl.float32)
            gate = tl.load(last_gate_at, mask=inside, other=0.0, eviction_policy="evict_last")
            wide += last * gate
        if AFTER != 0:
            mean = tl.sum(wide, axis=0) / width
            wide = tl.where(inside, wide - mean, 0.0)
            wide = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
            first = tl.load(
                first_ptr + table_at, mask=inside, other=0.0, eviction_policy="evict_last"
            ).to(tl.float32)
            if AFTER == 2:
                first += 1.0
            second = tl.load(
                second_ptr + table_at, mask=inside, other=0.0, eviction_policy="evict_last"
            )
            wide = wide * first + second.to(tl.float32)
        out_row = sample * length + row
        if QUANTISE:
            largest = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-12)
            tl.store(scale_ptr + out_row, largest / 448.0)
            wide = tl.minimum(tl.maximum(wide * (448.0 / largest), -448.0), 448.0)
        place = out_row * width + column
        tl.store(out_ptr + place, wide.to(out_ptr.dtype.element_ty), mask=inside)


def _rows(x: Tensor) -> tuple[int, int]:
    """Elements from one sample to the next, and from one token or part to the next."""
    if x.stride(-1) != 1:
        raise ValueError("neighbouring columns must lie side by side")
    return x.stride(0), x.stride(1)


def _launch(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    split: int,
    read: Tensor | None,
    start: int,
    last: tuple[Tensor, Tensor] | None,
    table: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    fp8: bool = False,
) -> tuple[Tensor, ...]:
    batch, length, width = x.shape
    out = torch.empty((batch, length, width), dtype=E4M3 if fp8 else x.dtype, device=x.device)
    scales = torch.empty((batch, length, 1), dtype=torch.float32, device=x.device) if fp8 else out
    first, second = (x, x) if table is None else table
    after, steps = 0, (0, 0)
    if table is not None:
        after = GAINS if first.dim() == 1 else MODULATION
        if first.stride() != second.stride():
            first, second = first.contiguous(), second.contiguous()
        steps = (0, 0) if after == GAINS else _rows(first)
    block = triton.next_power_of_2(width)
    tokens = tokens_for(batch * length)
    groups = triton.cdiv(split, tokens) + triton.cdiv(length - split, tokens)
    stream_kernel[(groups, batch)](
        x,
        update,
        gate,
        x if read is None else read,
        x if last is None else last[0],
        gate if last is None else last[1],
        first,
        second,
        out,
        scales,
        length,
        split,
        start,
        width,
        eps,
        *_rows(x),
        *_rows(update),
        *_rows(gate),
        *((0, 0) if read is None else _rows(read)),
        *((0, 0) if last is None else _rows(last[0])),
        *((0, 0) if last is None else _rows(last[1])),
        *steps,
        READ=read is not None,
        LAST=last is not None,
        AFTER=after,
        QUANTISE=fp8,
        TOKENS=tokens,
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return (out, scales) if fp8 else (out,)


def normalised(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    split: int,
    read: Tensor | None,
    start: int,
    table: tuple[Tensor, Tensor],
    eps: float,
    *,
    fp8: bool,
) -> tuple[Tensor, ...]:
    """The norm of the sum so far, or its values and scales; see :class:`helios.kernels.Stream`.

    ``table`` is gains and offsets ``[D]``, or scale and shift ``[B, 2, D]``.
    """
    return _launch(x, update, gate, split, read, start, None, table, eps, fp8=fp8)


def total(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    split: int,
    read: Tensor,
    start: int,
    last: tuple[Tensor, Tensor],
) -> Tensor:
    """The whole sum, rounded; see :class:`helios.kernels.Stream`."""
    return _launch(x, update, gate, split, read, start, last, None, 0.0)[0]
