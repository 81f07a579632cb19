"""Quantising to e4m3 in Triton: rows for matrix products, heads for attention."""
# Kernels are compiled by Triton, which has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="untyped-decorator,attr-defined"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios.kernels.gelu_triton import rowwise
from helios.kernels.scaled import E4M3

__all__ = ["quantise_heads", "quantise_rows"]


def quantise_rows(x: Tensor) -> tuple[Tensor, ...]:
    """See :func:`helios.kernels.quantise_rows`: values and scales."""
    return rowwise(x, None, activate=False, fp8=True)


@triton.jit
def head_tile(
    x_ptr, length, channels, x_batch, x_row, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Some tokens of one head in float32, their numbers, those of the channels, and which exist."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, CHANNELS)
    inside = (token < length)[:, None] & (channel < channels)[None, :]
    place = token.to(tl.int64)[:, None] * x_row + channel[None, :]
    start = tl.program_id(2) * x_batch + tl.program_id(1) * channels
    x = tl.load(x_ptr + start + place, mask=inside, other=0.0)
    return x.to(tl.float32), token, channel, inside


@triton.jit
def head_largest_kernel(
    x_ptr,
    largest_ptr,
    length,
    heads,
    channels,
    x_batch,
    x_row,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The largest magnitude of some tokens of one head, into that of the head."""
    sample, head = tl.program_id(2), tl.program_id(1)
    x, _token, _channel, _inside = head_tile(
        x_ptr, length, channels, x_batch, x_row, TOKENS, CHANNELS
    )
    largest = tl.max(tl.max(tl.abs(x), axis=1), axis=0)
    tl.atomic_max(largest_ptr + sample * heads + head, largest)


@triton.jit
def head_values_kernel(
    x_ptr,
    largest_ptr,
    out_ptr,
    length,
    heads,
    channels,
    x_batch,
    x_row,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Some tokens of one head in e4m3, so that the largest of the head becomes 448."""
    sample, head = tl.program_id(2), tl.program_id(1)
    x, token, channel, inside = head_tile(x_ptr, length, channels, x_batch, x_row, TOKENS, CHANNELS)
    factor = 448.0 / tl.load(largest_ptr + sample * heads + head)
    values = tl.minimum(tl.maximum(x * factor, -448.0), 448.0)
    out = (sample * length + token.to(tl.int64))[:, None] * (heads * channels)
    out += head * channels + channel[None, :]
    tl.store(out_ptr + out, values.to(out_ptr.dtype.element_ty), mask=inside)


def quantise_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, L, H, d]`` in e4m3 and the scale of every head, ``[B, H]``."""
    batch, length, heads, channels = x.shape
    if x.stride(-1) != 1 or x.stride(-2) != channels:
        x = x.contiguous()
    # Not 0: a head of zeros must not be divided by.
    largest = torch.full((batch, heads), 1e-12, dtype=torch.float32, device=x.device)
    out = torch.empty((batch, length, heads, channels), dtype=E4M3, device=x.device)
    tokens = 64
    grid = (triton.cdiv(length, tokens), heads, batch)
    sizes = (length, heads, channels, x.stride(0), x.stride(1))
    block = triton.next_power_of_2(channels)
    head_largest_kernel[grid](x, largest, *sizes, TOKENS=tokens, CHANNELS=block, num_warps=4)
    head_values_kernel[grid](x, largest, out, *sizes, TOKENS=tokens, CHANNELS=block, num_warps=4)
    return out, largest / 448.0
