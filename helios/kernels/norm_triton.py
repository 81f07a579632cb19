"""Norms alone, and residual additions with the norm that follows, in one pass, in Triton.

Where the sum itself is wanted beside its norm, as training wants it; a block without gradients
keeps its sums in a ``Stream`` instead, whose kernel also serves the norms that stand alone.

One program takes one or two neighbouring tokens of one part of the sequence (history or noisy). A
token's row stays in registers from the first read to the last write, so device memory is read and
written once; the vectors of the part come from the cache for every token, which leaves registers
for four programs on a multiprocessor where keeping the vectors would leave them for one or two.
"""
# Kernels are compiled by Triton, which has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="untyped-decorator,attr-defined"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios.kernels.e4m3 import E4M3
from helios.kernels.stream_triton import LAYER, RMS, launch, tokens_for, warps_for

__all__ = [
    "gated_add",
    "gated_add_layer_norm",
    "gated_add_layer_norm_e4m3",
    "gated_add_modulated_norm",
    "gated_add_modulated_norm_e4m3",
    "layer_norm",
    "modulated_norm",
    "modulated_norm_e4m3",
    "rms_norm",
    "text_add_modulated_norm",
    "text_add_modulated_norm_e4m3",
]

GAINS, MODULATION = 1, 2
"""What follows the norm."""


@triton.jit
def norm_kernel(
    x_ptr,
    update_ptr,
    gate_ptr,
    first_ptr,
    second_ptr,
    total_ptr,
    out_ptr,
    scale_ptr,
    length,
    split,
    width,
    eps,
    update_from,
    total_from,
    norm_from,
    x_batch,
    x_row,
    update_batch,
    update_row,
    gate_batch,
    gate_part,
    table_batch,
    table_part,
    GATED: tl.constexpr,
    AFTER: tl.constexpr,
    QUANTISE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows ``x + update (* gate)``, their layer norm, and its affine map.

    ``first`` and ``second`` are the gains and offsets, or the scale and shift of the part.
    """
    # Wide, because samples may lie more than 2^31 numbers apart in all.
    sample = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0)
    groups_before = tl.cdiv(split, TOKENS)
    noisy = group >= groups_before
    begin = tl.where(noisy, split + (group - groups_before) * TOKENS, group * TOKENS)
    end = tl.minimum(begin + TOKENS, tl.where(noisy, length, split))
    part = noisy.to(tl.int32)

    column = tl.arange(0, BLOCK)
    inside = column < width
    gate_at = gate_ptr + sample * gate_batch + part * gate_part + column
    table_at = sample * table_batch + part * table_part + column

    for index in range(end - begin):
        row = begin.to(tl.int64) + index
        x = tl.load(x_ptr + sample * x_batch + row * x_row + column, mask=inside, other=0.0)
        wide = x.to(tl.float32)
        there = inside & (row >= update_from)
        place = sample * update_batch + (row - update_from) * update_row + column
        update = tl.load(update_ptr + place, mask=there, other=0.0).to(tl.float32)
        if GATED:
            update *= tl.load(gate_at, mask=inside, other=0.0, eviction_policy="evict_last")
        rounded = (wide + update).to(x.dtype)
        place = (sample * length + row) * width + column
        tl.store(total_ptr + place, rounded, mask=inside & (row >= total_from))
        wide = rounded.to(tl.float32)
        if row >= norm_from:
            mean = tl.sum(wide, axis=0) / width
            wide = tl.where(inside, wide - mean, 0.0)
            normal = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
            first = tl.load(
                first_ptr + table_at, mask=inside, other=0.0, eviction_policy="evict_last"
            ).to(tl.float32)
            if AFTER == 2:
                first += 1.0
            second = tl.load(
                second_ptr + table_at, mask=inside, other=0.0, eviction_policy="evict_last"
            )
            normal = normal * first + second.to(tl.float32)
            out_row = sample * (length - norm_from) + row - norm_from
            if QUANTISE:
                largest = tl.maximum(tl.max(tl.abs(normal), axis=0), 1e-12)
                tl.store(scale_ptr + out_row, largest / 448.0)
                normal = tl.minimum(tl.maximum(normal * (448.0 / largest), -448.0), 448.0)
            place = out_row * width + column
            tl.store(out_ptr + place, normal.to(out_ptr.dtype.element_ty), mask=inside)


def _launch(
    x: Tensor,
    update: Tensor,
    *,
    split: int,
    eps: float,
    first: Tensor,
    second: Tensor,
    gate: Tensor | None = None,
    update_from: int = 0,
    norm_from: int = 0,
    fp8: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, ...]:
    """The sum, the normalised tokens, and their scales if they are in e4m3."""
    x, update = _dense_rows(x), _dense_rows(update)
    batch, length, width = x.shape
    in_place = in_place and x.is_contiguous()
    total = x if in_place else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shape = (batch, length - norm_from)
    out = torch.empty((*shape, width), dtype=E4M3 if fp8 else x.dtype, device=x.device)
    scales = torch.empty((*shape, 1), dtype=torch.float32, device=x.device) if fp8 else out
    block = triton.next_power_of_2(width)
    tokens = tokens_for(batch * length)
    groups = triton.cdiv(split, tokens) + triton.cdiv(length - split, tokens)
    modulated = first.dim() > 1
    norm_kernel[(groups, batch)](
        x,
        update,
        x if gate is None else _unit(gate),
        _unit(first),
        _unit(second),
        total,
        out,
        scales,
        length,
        split,
        width,
        eps,
        update_from,
        update_from if in_place else 0,
        norm_from,
        *_steps(x),
        *_steps(update),
        *((0, 0) if gate is None else _steps(gate)),
        *(_steps(first) if modulated else (0, 0)),
        GATED=gate is not None,
        AFTER=MODULATION if modulated else GAINS,
        QUANTISE=fp8,
        TOKENS=tokens,
        BLOCK=block,
        num_warps=warps_for(block),
    )
    return (total, out, scales) if fp8 else (total, out)


def _dense_rows(x: Tensor) -> Tensor:
    """``x`` with neighbouring columns side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _unit(x: Tensor) -> Tensor:
    if x.stride(-1) != 1:
        raise ValueError("the columns of modulation vectors must lie side by side")
    return x


def _steps(x: Tensor) -> tuple[int, int]:
    """Elements from one sample to the next, and from one token or part to the next."""
    return x.stride(0), x.stride(1)


def _same_table(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same strides: one set of them is passed on."""
    if scale.stride() != shift.stride():
        return scale.contiguous(), shift.contiguous()
    return scale, shift


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See :func:`helios.kernels.rms_norm`."""
    (out,) = launch(_tokens(x), norm=RMS, first=weight, eps=eps)
    return out.view(x.shape)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See :func:`helios.kernels.layer_norm`."""
    (out,) = launch(_tokens(x), norm=LAYER, first=weight, second=bias, eps=eps)
    return out.view(x.shape)


def _tokens(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])


def _modulated(
    x: Tensor,
    update: Tensor,
    shift: Tensor,
    scale: Tensor,
    split: int,
    eps: float,
    **options: Any,
) -> tuple[Tensor, ...]:
    first, second = _same_table(scale, shift)
    return _launch(x, update, split=split, eps=eps, first=first, second=second, **options)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float) -> Tensor:
    """See :func:`helios.kernels.modulated_norm`."""
    return launch(x, split=split, norm=LAYER, first=scale, second=shift, eps=eps)[0]


def modulated_norm_e4m3(
    x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float
) -> tuple[Tensor, ...]:
    """The same as values and scales."""
    return launch(x, split=split, norm=LAYER, first=scale, second=shift, eps=eps, fp8=True)


def gated_add(x: Tensor, update: Tensor, gate: Tensor, split: int) -> Tensor:
    """See :func:`helios.kernels.gated_add`."""
    (out,) = launch(x, split=split, update=_dense_rows(update), gate=gate)
    return out


def gated_add_layer_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    split: int,
    weight: Tensor,
    bias: Tensor,
    start: int,
    eps: float,
    *,
    fp8: bool = False,
) -> tuple[Tensor, ...]:
    """See :func:`helios.kernels.gated_add_layer_norm`."""
    return _launch(
        x,
        update,
        split=split,
        eps=eps,
        first=weight,
        second=bias,
        gate=gate,
        norm_from=start,
        fp8=fp8,
    )


def gated_add_layer_norm_e4m3(*args: Any) -> tuple[Tensor, ...]:
    """The same with the normalised tokens as values and scales."""
    return gated_add_layer_norm(*args, fp8=True)


def gated_add_modulated_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    split: int,
    eps: float,
    *,
    fp8: bool = False,
) -> tuple[Tensor, ...]:
    """See :func:`helios.kernels.gated_add_modulated_norm`."""
    return _modulated(x, update, shift, scale, split, eps, gate=gate, fp8=fp8)


def gated_add_modulated_norm_e4m3(*args: Any) -> tuple[Tensor, ...]:
    """The same with the normalised tokens as values and scales."""
    return gated_add_modulated_norm(*args, fp8=True)


def text_add_modulated_norm(
    x: Tensor,
    update: Tensor,
    start: int,
    shift: Tensor,
    scale: Tensor,
    split: int,
    eps: float,
    *,
    fp8: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, ...]:
    """See :func:`helios.kernels.text_add_modulated_norm`; ``in_place``: ``x`` becomes the sum."""
    options = {"update_from": start, "fp8": fp8, "in_place": in_place}
    return _modulated(x, update, shift, scale, split, eps, **options)


def text_add_modulated_norm_e4m3(*args: Any) -> tuple[Tensor, ...]:
    """The same into ``x``, with the normalised tokens as values and scales."""
    return text_add_modulated_norm(*args, fp8=True, in_place=True)
