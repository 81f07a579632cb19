"""Between two convolutions of the fast decoder, as one Triton kernel each; the formulas and what
the arguments mean stand in ``decode.PlainOps``.

Pixels are rows of channels. One program takes some pixels with all their channels, so the norm
needs no second pass; arithmetic is float32, with one rounding for each tensor written.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# A function within kernels, so by its file: the room itself is imported where Triton is not.
from helios.kernels.gelu_triton import share

__all__ = ["TritonOps"]

_ELEMENTS = 4096
"""Numbers one program holds at a time."""
_LEVELS_BLOCK = 1024


@triton.jit
def _loaded(pointers, channel, there, C: tl.constexpr, FULL: tl.constexpr):
    """Some channels of some pixels in float32; ``pointers`` are to the first channel of each."""
    places = pointers[:, None] + channel[None, :]
    if FULL:
        value = tl.load(places)
    else:
        value = tl.load(places, mask=there[:, None] & (channel < C)[None, :], other=0.0)
    return value.to(tl.float32)


@triton.jit
def _stored(pointers, channel, there, value, C: tl.constexpr, FULL: tl.constexpr):
    places = pointers[:, None] + channel[None, :]
    if FULL:
        tl.store(places, value)
    else:
        tl.store(places, value, mask=there[:, None] & (channel < C)[None, :])


@triton.jit
def _summed(
    h_at,
    bias_ptr,
    skip_at,
    sum_at,
    channel,
    there,
    C: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    WRITE_SUM: tl.constexpr,
    FULL: tl.constexpr,
):
    """``h + bias (+ skip)`` of some channels, written and rounded if asked."""
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    value = _loaded(h_at, channel, there, C, FULL) + bias[None, :]
    if HAS_SKIP:
        value += _loaded(skip_at, channel, there, C, FULL)
    if WRITE_SUM:
        rounded = value.to(sum_at.dtype.element_ty)
        _stored(sum_at, channel, there, rounded, C, FULL)
        value = rounded.to(tl.float32)
    return value


@triton.jit
def _activated(value, inverse, gamma_ptr, root, channel, C: tl.constexpr):
    """SiLU of some channels, normalised: two instructions for exponential and quotient."""
    gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32) * root
    normal = value * inverse[:, None] * gamma[None, :]
    return normal * share(normal * 1.4426950408889634)


# One program for a whole chunk and for a first frame alone.
@triton.jit(do_not_specialize=["frames"])
def between_kernel(
    h_ptr,
    bias_ptr,
    skip_ptr,
    gamma_ptr,
    sum_ptr,
    out_ptr,
    frames,
    height,
    width,
    root,
    C: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAST: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    WRITE_SUM: tl.constexpr,
    NORM: tl.constexpr,
    GATHER: tl.constexpr,
    FULL: tl.constexpr,
):
    """``x = h + bias (+ skip)``, written if asked; ``y = silu(norm(x))``, written if asked.

    A program takes some pixels of one row of one frame, which needs no division, and their channels
    in two pieces of powers of two, which leaves none idle at 96 or 192. With ``GATHER``, ``h``
    holds the four phases of pictures of ``height`` x ``width``. ``FULL``: pieces and blocks fit.
    """
    x = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    y = tl.program_id(1)
    frame = tl.program_id(2)
    there = x < width
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    line = (frame.to(tl.int64) * height + y) * width
    own = (line + x) * C
    if GATHER:
        row = y % 2
        column = x % 2
        source = (frame.to(tl.int64) * (height // 2 + 1) + y // 2 + row) * (width // 2 + 1)
        source = ((source + x // 2 + column) * 4 + column * 2 + row) * C
    else:
        source = own
    h_at, skip_at, sum_at = h_ptr + source, skip_ptr + own, sum_ptr + own
    left = _summed(
        h_at, bias_ptr, skip_at, sum_at, head, there, C, HAS_SKIP, WRITE_SUM, FULL
    )  # fmt: skip
    right = _summed(
        h_at, bias_ptr, skip_at, sum_at, tail, there, C, HAS_SKIP, WRITE_SUM, FULL
    )  # fmt: skip
    if NORM:
        # Where nothing is, other threads' numbers cannot be reached: every pixel has its own sum.
        square = tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)
        inverse = 1.0 / tl.maximum(tl.sqrt(square), 1e-12)
        after = (frame // frames + 1).to(tl.int64) * PAST * height * width
        out_at = out_ptr + own + after * C
        left = _activated(left, inverse, gamma_ptr, root, head, C)
        _stored(out_at, head, there, left.to(out_ptr.dtype.element_ty), C, FULL)
        right = _activated(right, inverse, gamma_ptr, root, tail, C)
        _stored(out_at, tail, there, right.to(out_ptr.dtype.element_ty), C, FULL)


@triton.jit
def levels_kernel(
    h_ptr, bias_ptr, out_ptr, count, C: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Bytes of ``h + bias``, rounded to the nearest level, ties to even; of ``WIDE`` channels the
    first ``C``.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < count
    place = index // C * WIDE + index % C
    value = tl.load(h_ptr + place, mask=there, other=0.0).to(tl.float32)
    value += tl.load(bias_ptr + index % C, mask=there, other=0.0).to(tl.float32)
    value = tl.minimum(tl.maximum(value * 127.5 + 127.5, 0.0), 255.0)
    # At this magnitude float32 has no fractions left, so the sum is the rounding.
    value = (value + 12582912.0) - 12582912.0
    tl.store(out_ptr + index, value.to(tl.uint8), mask=there)


class TritonOps:
    """The operations of ``decode.Ops`` on CUDA."""

    def norm(self, h: Tensor, bias: Tensor, gamma: Tensor, past: int) -> Tensor:
        """See ``Ops``."""
        _, out = _between(h, bias, None, gamma, past, h.shape, write_sum=False)
        assert out is not None
        return out

    def add_norm(
        self, h: Tensor, bias: Tensor, skip: Tensor, gamma: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Ops``."""
        total, out = _between(h, bias, skip, gamma, past, h.shape, write_sum=True)
        assert total is not None
        return total, out

    def double_norm(
        self, phases: Tensor, bias: Tensor, gamma: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Ops``."""
        batch, frames, height, width, channels = phases.shape
        shape = torch.Size((batch, frames, 2 * height - 2, 2 * width - 2, channels // 4))
        total, out = _between(phases, bias, None, gamma, past, shape, write_sum=True)
        assert total is not None
        return total, out

    def levels(self, h: Tensor, bias: Tensor) -> Tensor:
        """See ``Ops``."""
        out = torch.empty(h.shape, dtype=torch.uint8, device=h.device)
        grid = (triton.cdiv(h.numel(), _LEVELS_BLOCK),)
        sizes = {"C": h.shape[-1], "WIDE": h.stride(-2), "BLOCK": _LEVELS_BLOCK}
        levels_kernel[grid](h, bias, out, h.numel(), **sizes)
        return out


def _between(
    h: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    gamma: Tensor | None,
    past: int,
    shape: torch.Size,
    *,
    write_sum: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """One launch over pictures of ``shape``."""
    batch, frames, height, width, channels = shape
    total = h.new_empty(shape) if write_sum else None
    out = None
    if gamma is not None:
        out = h.new_empty(batch, past + frames, height, width, channels)
        out[:, :past].zero_()
    head = max(1, triton.next_power_of_2(channels) // 2)
    tail = triton.next_power_of_2(max(1, channels - head))
    block = min(max(1, _ELEMENTS // (2 * head)), triton.next_power_of_2(width))
    nothing: Any = h
    between_kernel[(triton.cdiv(width, block), height, batch * frames)](
        h,
        bias,
        nothing if skip is None else skip,
        bias if gamma is None else gamma,
        nothing if total is None else total,
        nothing if out is None else out,
        frames,
        height,
        width,
        float(channels) ** 0.5,
        C=channels,
        HEAD=head,
        TAIL=tail,
        BLOCK_P=block,
        PAST=past,
        HAS_SKIP=skip is not None,
        WRITE_SUM=write_sum,
        NORM=gamma is not None,
        GATHER=h.shape != shape,
        FULL=head + tail == channels and width % block == 0,
    )
    return total, out
