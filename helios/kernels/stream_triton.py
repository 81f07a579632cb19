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

from helios.kernels.e4m3 import E4M3

__all__ = ["LAYER", "RMS", "launch", "normalised", "pieces", "tokens_for", "total", "warps_for"]

RMS, LAYER = 1, 2
"""The norm; 0 is none."""
GAINS, MODULATION, SHIFT = 1, 2, 3
"""What follows it; 0 is nothing."""


@triton.jit
def _summed(
    x_ptr,
    update_ptr,
    gate_ptr,
    read_ptr,
    last_ptr,
    last_gate_ptr,
    reads,
    column,
    width,
    UPDATE: tl.constexpr,
    READ: tl.constexpr,
    LAST: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Some columns of one token's sum in float32; all pointers are to its own rows."""
    inside = column < width
    wide = _loaded(x_ptr, column, inside, WHOLE).to(tl.float32)
    if UPDATE:
        update = _loaded(update_ptr, column, inside, WHOLE).to(tl.float32)
        wide += update * _kept(gate_ptr, column, inside, WHOLE)
    if READ:
        wide += tl.load(read_ptr + column, mask=inside & reads, other=0.0).to(tl.float32)
    if LAST:
        last = _loaded(last_ptr, column, inside, WHOLE).to(tl.float32)
        wide += last * _kept(last_gate_ptr, column, inside, WHOLE)
    return wide


@triton.jit
def _loaded(pointer, column, inside, WHOLE: tl.constexpr):
    if WHOLE:
        value = tl.load(pointer + column)
    else:
        value = tl.load(pointer + column, mask=inside, other=0.0)
    return value


@triton.jit
def _kept(pointer, column, inside, WHOLE: tl.constexpr):
    """Part of a vector that every token reads, in float32."""
    if WHOLE:
        value = tl.load(pointer + column, eviction_policy="evict_last")
    else:
        value = tl.load(pointer + column, mask=inside, other=0.0, eviction_policy="evict_last")
    return value.to(tl.float32)


@triton.jit
def _mapped(
    wide,
    first_ptr,
    second_ptr,
    column,
    width,
    AFTER: tl.constexpr,
    OFFSET: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Some columns after the norm: times gains or ``1 + scale``, plus offsets or shift."""
    inside = column < width
    if AFTER != 3:
        first = _kept(first_ptr, column, inside, WHOLE)
        if AFTER == 2:
            first += 1.0
        wide = wide * first
    if OFFSET:
        wide += _kept(second_ptr, column, inside, WHOLE)
    return wide


@triton.jit
def _stored(pointer, column, width, wide, WHOLE: tl.constexpr):
    value = wide.to(pointer.dtype.element_ty)
    if WHOLE:
        tl.store(pointer + column, value)
    else:
        tl.store(pointer + column, value, mask=column < width)


# One program for every length: none of its addresses is better for knowing it.
@triton.jit(do_not_specialize=["length", "split", "start"])
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
    UPDATE: tl.constexpr,
    READ: tl.constexpr,
    LAST: tl.constexpr,
    NORM: tl.constexpr,
    AFTER: tl.constexpr,
    OFFSET: tl.constexpr,
    QUANTISE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Rows ``x (+ update * gate) (+ read) (+ last * last_gate)`` in float32, then their norm and
    its affine map if asked for; rounded once.

    ``first`` and ``second`` are the gains and offsets, or the scale and shift of the part. A row is
    held as its first ``HEAD`` columns and ``TAIL`` more, both powers of two: 5120 columns in one
    piece would be 8192, three eighths of them idle. ``WHOLE``: they are all of the columns.
    """
    # Wide, because samples may lie more than 2^31 numbers apart in all.
    sample = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0)
    groups_before = tl.cdiv(split, TOKENS)
    noisy = group >= groups_before
    begin = tl.where(noisy, split + (group - groups_before) * TOKENS, group * TOKENS)
    end = tl.minimum(begin + TOKENS, tl.where(noisy, length, split))
    part = noisy.to(tl.int32)

    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    gate_ptr += sample * gate_batch + part * gate_part
    last_gate_ptr += sample * last_gate_batch + part * last_gate_part
    first_ptr += sample * table_batch + part * table_part
    second_ptr += sample * table_batch + part * table_part

    for index in range(end - begin):
        row = begin.to(tl.int64) + index
        reads = row >= start
        x_at = x_ptr + sample * x_batch + row * x_row
        update_at = update_ptr + sample * update_batch + row * update_row
        read_at = read_ptr + sample * read_batch + (row - start) * read_row
        last_at = last_ptr + sample * last_batch + row * last_row
        left = _summed(
            x_at, update_at, gate_ptr, read_at, last_at, last_gate_ptr, reads, head, width,
            UPDATE, READ, LAST, WHOLE,
        )  # fmt: skip
        right = _summed(
            x_at, update_at, gate_ptr, read_at, last_at, last_gate_ptr, reads, tail, width,
            UPDATE, READ, LAST, WHOLE,
        )  # fmt: skip
        if NORM == 2:
            mean = (tl.sum(left, axis=0) + tl.sum(right, axis=0)) / width
            left -= mean
            right -= mean
            if not WHOLE:
                left = tl.where(head < width, left, 0.0)
                right = tl.where(tail < width, right, 0.0)
        if NORM != 0:
            square = tl.sum(left * left, axis=0) + tl.sum(right * right, axis=0)
            inverse = tl.rsqrt(square / width + eps)
            left *= inverse
            right *= inverse
        if AFTER != 0:
            left = _mapped(left, first_ptr, second_ptr, head, width, AFTER, OFFSET, WHOLE)
            right = _mapped(right, first_ptr, second_ptr, tail, width, AFTER, OFFSET, WHOLE)
        out_row = sample * length + row
        if QUANTISE:
            largest = tl.maximum(tl.max(tl.abs(left), axis=0), tl.max(tl.abs(right), axis=0))
            largest = tl.maximum(largest, 1e-12)
            tl.store(scale_ptr + out_row, largest / 448.0)
            # The largest becomes 448 but for its last bit, so nothing has to be cut off.
            left *= 448.0 / largest
            right *= 448.0 / largest
        out_at = out_ptr + out_row * width
        _stored(out_at, head, width, left, WHOLE)
        _stored(out_at, tail, width, right, WHOLE)


def pieces(width: int) -> tuple[int, int]:
    """Two powers of two that hold so many columns with the fewest to spare, the larger first."""
    whole: int = triton.next_power_of_2(width)
    head = max(16, whole // 2)
    tail = max(16, triton.next_power_of_2(max(1, width - head)))
    return head, tail


def warps_for(columns: int, *, norm: bool = True) -> int:
    """Warps of a program over so many columns: 32 to 64 of them for every thread.

    Without a norm half as many: no warp waits for a sum over the row then.
    """
    fit = max(1, min(16, columns // 1024))
    return (1 if norm else 2) << (fit.bit_length() - 1)


def _rows(x: Tensor) -> tuple[int, int]:
    """Elements from one sample to the next, and from one token or part to the next."""
    if x.stride(-1) != 1:
        raise ValueError("neighbouring columns must lie side by side")
    return x.stride(0), x.stride(1)


def tokens_for(length: int) -> int:
    """Tokens of one program: as many as leave work for every multiprocessor."""
    return 2 if length >= 8192 else 1


def launch(
    x: Tensor,
    *,
    split: int = 0,
    update: Tensor | None = None,
    gate: Tensor | None = None,
    read: Tensor | None = None,
    start: int = 0,
    last: Tensor | None = None,
    last_gate: Tensor | None = None,
    norm: int = 0,
    first: Tensor | None = None,
    second: Tensor | None = None,
    eps: float = 0.0,
    fp8: bool = False,
) -> tuple[Tensor, ...]:
    """One pass over ``x [B, L, D]``: the rounded tokens, or their values and scales.

    Args:
        x: the tokens, of which the first ``split`` have the first row of every table.
        split: number of history tokens.
        update: ``[B, L, D]`` added with ``gate``, ``[B, 2, D]``.
        gate: see ``update``.
        read: ``[B, L - start, D]`` added to the tokens from ``start`` on.
        start: see ``read``.
        last: ``[B, L, D]`` added with ``last_gate``, ``[B, 2, D]``.
        last_gate: see ``last``.
        norm: 0, `RMS` or `LAYER`.
        first: gains ``[D]``, or scales ``[B, 2, D]``.
        second: offsets ``[D]``, or shifts ``[B, 2, D]``, of the strides of ``first``; without it
            ``[B, D]``, one for all tokens of a sample.
        eps: added to the mean square.
        fp8: give e4m3 with a scale per token.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, length, width = x.shape
    out = torch.empty((batch, length, width), dtype=E4M3 if fp8 else x.dtype, device=x.device)
    scales = torch.empty((batch, length, 1), dtype=torch.float32, device=x.device) if fp8 else out
    after, table = 0, (0, 0)
    if first is not None:
        after = GAINS if first.dim() == 1 else MODULATION
        if second is not None and second.stride() != first.stride():
            first, second = first.contiguous(), second.contiguous()
        table = (0, 0) if after == GAINS else _rows(first)
    elif second is not None:
        second = second.contiguous()
        after, table = SHIFT, (second.stride(0), 0)
    head, tail = pieces(width)
    tokens = tokens_for(batch * length)
    groups = triton.cdiv(split, tokens) + triton.cdiv(length - split, tokens)
    given = [x if one is None else one for one in (update, gate, read, last, last_gate)]
    stream_kernel[(groups, batch)](
        x,
        *given,
        x if first is None else first,
        x if second is None else second,
        out,
        scales,
        length,
        split,
        start,
        width,
        eps,
        *_rows(x),
        *(step for one in given for step in _rows(one)),
        *table,
        UPDATE=update is not None,
        READ=read is not None,
        LAST=last is not None,
        NORM=norm,
        AFTER=after,
        OFFSET=second is not None,
        QUANTISE=fp8,
        TOKENS=tokens,
        HEAD=head,
        TAIL=tail,
        WHOLE=head + tail == width,
        num_warps=warps_for(head + tail, norm=bool(norm or fp8)),
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
    return launch(
        x,
        split=split,
        update=update,
        gate=gate,
        read=read,
        start=start,
        norm=LAYER,
        first=table[0],
        second=table[1],
        eps=eps,
        fp8=fp8,
    )


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
    (out,) = launch(
        x,
        split=split,
        update=update,
        gate=gate,
        read=read,
        start=start,
        last=last[0],
        last_gate=last[1],
    )
    return out
