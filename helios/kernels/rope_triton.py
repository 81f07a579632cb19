"""Query-key norm and rotation in one pass, in Triton.

A program holds whole tokens as ``[heads, channels]``: the norm needs all heads together, the
rotation pairs of neighbouring channels, and the angles of a token serve all of its heads.
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
from helios.kernels.stream_triton import tokens_for, warps_for

__all__ = ["norm_rope", "norm_rope_e4m3"]


@triton.jit
def _turned(wide, weight_ptr, factor_ptr, inverse, cos, sin, head, channel, heads, channels,
            QUANTISE: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Some heads normalised and rotated."""
    inside = (head < heads)[:, None] & (channel < channels)[None, :]
    place = head[:, None] * channels + channel[None, :]
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0, eviction_policy="evict_last")
    normal = wide * inverse * weight.to(tl.float32)
    even, odd = tl.split(tl.reshape(normal, (HEADS, CHANNELS // 2, 2)))
    turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    turned = tl.reshape(turned, (HEADS, CHANNELS))
    if QUANTISE:
        factor = tl.load(factor_ptr + head, mask=head < heads, other=0.0)
        turned = tl.minimum(tl.maximum(turned * factor[:, None], -448.0), 448.0)
    return turned


@triton.jit
def _loaded(x_at, head, channel, heads, channels):
    """Some heads of a token in float32."""
    inside = (head < heads)[:, None] & (channel < channels)[None, :]
    place = head[:, None] * channels + channel[None, :]
    return tl.load(x_at + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _stored(out_at, turned, head, channel, heads, channels):
    inside = (head < heads)[:, None] & (channel < channels)[None, :]
    place = head[:, None] * channels + channel[None, :]
    tl.store(out_at + place, turned.to(out_at.dtype.element_ty), mask=inside)


# One program for every length: none of its addresses is better for knowing it.
@triton.jit(do_not_specialize=["length"])
def norm_rope_kernel(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    factor_ptr,
    out_ptr,
    length,
    heads,
    channels,
    eps,
    x_batch,
    x_row,
    angle_batch,
    QUANTISE: tl.constexpr,
    TOKENS: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """``rotate(rms_norm(x))``, times a factor per head where e4m3 is wanted; rounded once.

    A token is held as its first ``FIRST`` heads and ``REST`` more, both powers of two.
    """
    # Wide, because samples may lie more than 2^31 numbers apart in all.
    sample = tl.program_id(1).to(tl.int64)
    begin = tl.program_id(0) * TOKENS
    end = tl.minimum(begin + TOKENS, length)
    width = heads * channels
    half = channels // 2

    first = tl.arange(0, FIRST)
    rest = FIRST + tl.arange(0, REST)
    channel = tl.arange(0, CHANNELS)
    pair = tl.arange(0, CHANNELS // 2)

    for index in range(end - begin):
        row = begin.to(tl.int64) + index
        x_at = x_ptr + sample * x_batch + row * x_row
        left = _loaded(x_at, first, channel, heads, channels)
        right = _loaded(x_at, rest, channel, heads, channels)
        square = tl.sum(tl.sum(left * left, axis=1), axis=0)
        square += tl.sum(tl.sum(right * right, axis=1), axis=0)
        inverse = tl.rsqrt(square / width + eps)
        angle = sample * angle_batch + row * half + pair
        cos = tl.load(cos_ptr + angle, mask=pair < half, other=0.0)[None, :]
        sin = tl.load(sin_ptr + angle, mask=pair < half, other=0.0)[None, :]
        out_at = out_ptr + (sample * length + row) * width
        left = _turned(left, weight_ptr, factor_ptr, inverse, cos, sin, first, channel, heads,
                       channels, QUANTISE, FIRST, CHANNELS)  # fmt: skip
        _stored(out_at, left, first, channel, heads, channels)
        right = _turned(right, weight_ptr, factor_ptr, inverse, cos, sin, rest, channel, heads,
                        channels, QUANTISE, REST, CHANNELS)  # fmt: skip
        _stored(out_at, right, rest, channel, heads, channels)


def _launch(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, factor: Tensor | None
) -> Tensor:
    batch, length, width = x.shape
    channels = 2 * cos.shape[-1]
    heads = width // channels
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(
        (batch, length, heads, channels),
        dtype=x.dtype if factor is None else E4M3,
        device=x.device,
    )
    tokens = tokens_for(batch * length)
    channels_block = triton.next_power_of_2(channels)
    first = max(1, triton.next_power_of_2(heads) // 2)
    rest = triton.next_power_of_2(max(1, heads - first))
    cos, sin = cos.contiguous(), sin.contiguous()
    norm_rope_kernel[(triton.cdiv(length, tokens), batch)](
        x,
        weight,
        cos,
        sin,
        x if factor is None else factor,
        out,
        length,
        heads,
        channels,
        eps,
        x.stride(0),
        x.stride(1),
        cos.stride(0) if cos.dim() == 3 else 0,
        QUANTISE=factor is not None,
        TOKENS=tokens,
        FIRST=first,
        REST=rest,
        CHANNELS=channels_block,
        num_warps=warps_for((first + rest) * channels_block),
    )
    return out


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """See :func:`helios.kernels.norm_rope`."""
    return _launch(x, weight, cos, sin, eps, None)


def norm_rope_e4m3(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, factor: Tensor
) -> Tensor:
    """The same times ``factor`` per head, in e4m3."""
    return _launch(x, weight, cos, sin, eps, factor)
