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

__all__ = ["TritonOps"]

_ELEMENTS = 4096
"""Numbers one program holds at a time."""
_LEVELS_BLOCK = 1024


@triton.jit
def between_kernel(
    h_ptr,
    bias_ptr,
    skip_ptr,
    gamma_ptr,
    sum_ptr,
    out_ptr,
    pixels,
    plane,
    clip,
    height,
    width,
    root,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAST: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    WRITE_SUM: tl.constexpr,
    NORM: tl.constexpr,
    GATHER: tl.constexpr,
):
    """``x = h + bias (+ skip)``, written if asked; ``y = silu(norm(x))``, written if asked.

    ``plane`` is the pixels of a frame, ``clip`` those of all frames of a sample; with ``GATHER``,
    ``h`` holds the four phases of pictures of ``height`` x ``width``.
    """
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    there = (pixel < pixels)[:, None] & (channel < C)[None, :]
    if GATHER:
        frame = pixel // plane
        place = pixel % plane
        y = place // width
        x = place % width
        row = y % 2
        column = x % 2
        source = (frame * (height // 2 + 1) + y // 2 + row) * (width // 2 + 1) + x // 2 + column
        source = (source * 4 + column * 2 + row) * C
    else:
        source = pixel * C
    h = tl.load(h_ptr + source[:, None] + channel[None, :], mask=there, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    value = h.to(tl.float32) + bias[None, :]
    own = (pixel * C)[:, None] + channel[None, :]
    if HAS_SKIP:
        value += tl.load(skip_ptr + own, mask=there, other=0.0).to(tl.float32)
    if WRITE_SUM:
        rounded = value.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + own, rounded, mask=there)
        value = rounded.to(tl.float32)
    if NORM:
        square = tl.sum(tl.where(there, value * value, 0.0), axis=1)
        inverse = 1.0 / tl.maximum(tl.sqrt(square), 1e-12)
        gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32) * root
        normal = value * inverse[:, None] * gamma[None, :]
        active = normal * (1.0 / (1.0 + tl.exp(-normal)))
        after = (pixel + (pixel // clip + 1) * PAST * plane) * C
        place_out = after[:, None] + channel[None, :]
        tl.store(out_ptr + place_out, active.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def levels_kernel(h_ptr, bias_ptr, out_ptr, count, C: tl.constexpr, BLOCK: tl.constexpr):
    """Bytes of ``h + bias``, rounded to the nearest level, ties to even."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < count
    value = tl.load(h_ptr + index, mask=there, other=0.0).to(tl.float32)
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
        out = torch.empty_like(h, dtype=torch.uint8)
        grid = (triton.cdiv(h.numel(), _LEVELS_BLOCK),)
        levels_kernel[grid](h, bias, out, h.numel(), C=h.shape[-1], BLOCK=_LEVELS_BLOCK)
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
    pixels, plane = batch * frames * height * width, height * width
    block_c = triton.next_power_of_2(channels)
    block_p = max(1, _ELEMENTS // block_c)
    nothing: Any = h
    between_kernel[(triton.cdiv(pixels, block_p),)](
        h,
        bias,
        nothing if skip is None else skip,
        bias if gamma is None else gamma,
        nothing if total is None else total,
        nothing if out is None else out,
        pixels,
        plane,
        frames * plane,
        height,
        width,
        float(channels) ** 0.5,
        C=channels,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        PAST=past,
        HAS_SKIP=skip is not None,
        WRITE_SUM=write_sum,
        NORM=gamma is not None,
        GATHER=h.shape != shape,
    )
    return total, out
