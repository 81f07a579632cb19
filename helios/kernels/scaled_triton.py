"""Quantising to e4m3 in Triton: rows for matrix products, heads for attention."""
# Kernels are compiled by Triton, which has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="untyped-decorator,attr-defined"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios.kernels.e4m3 import E4M3
from helios.kernels.stream_triton import launch

__all__ = ["quantise_centred", "quantise_heads", "quantise_rows"]


def quantise_rows(x: Tensor, offset: Tensor | None = None) -> tuple[Tensor, ...]:
    """See :func:`helios.kernels.quantise_rows`: values and scales."""
    tokens = x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])
    values, scale = launch(tokens, second=offset, fp8=True)
    return values.view(x.shape), scale.view(*x.shape[:-1], 1)


@triton.jit
def head_tile(
    x_ptr, length, channels, x_batch, x_row, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Some tokens of one head in float32, their numbers, those of the channels, and which exist."""
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.arange(0, CHANNELS)
    inside = (token < length)[:, None] & (channel < channels)[None, :]
    place = token.to(tl.int64)[:, None] * x_row + channel[None, :]
    start = tl.program_id(2).to(tl.int64) * x_batch + tl.program_id(0) * channels
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
    sample, head = tl.program_id(2), tl.program_id(0)
    x, _token, _channel, _inside = head_tile(
        x_ptr, length, channels, x_batch, x_row, TOKENS, CHANNELS
    )
    largest = tl.max(tl.max(tl.abs(x), axis=1), axis=0)
    tl.atomic_max(largest_ptr + sample * heads + head, largest)


@triton.jit
def channel_parts_kernel(
    x_ptr,
    parts_ptr,
    length,
    heads,
    channels,
    x_batch,
    x_row,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sum, least and largest of every channel of a head over some tokens: ``[3, B, H, G, d]``."""
    head, group, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x, _token, channel, inside = head_tile(
        x_ptr, length, channels, x_batch, x_row, TOKENS, CHANNELS
    )
    groups = tl.num_programs(1)
    out = parts_ptr + ((sample * heads + head) * groups + group) * channels + channel
    step = tl.num_programs(2) * heads * groups * channels
    there = channel < channels
    tl.store(out, tl.sum(x, axis=0), mask=there)
    tl.store(out + step, tl.min(tl.where(inside, x, float("inf")), axis=0), mask=there)
    tl.store(out + 2 * step, tl.max(tl.where(inside, x, float("-inf")), axis=0), mask=there)


@triton.jit
def channel_means_kernel(
    parts_ptr,
    mean_ptr,
    largest_ptr,
    length,
    groups,
    heads,
    channels,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """What `channel_parts_kernel` left of a head put together: the mean of every channel, and the
    largest magnitude that is left of the head without it.
    """
    head, sample = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    there = channel < channels
    step = tl.num_programs(1) * heads * groups * channels
    parts_ptr += (sample * heads + head) * groups * channels
    total = tl.zeros([CHANNELS], dtype=tl.float32)
    least = tl.full([CHANNELS], float("inf"), dtype=tl.float32)
    most = tl.full([CHANNELS], float("-inf"), dtype=tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        inside = (group < groups)[:, None] & there[None, :]
        at = parts_ptr + group[:, None] * channels + channel[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0), axis=0)
        low = tl.load(at + step, mask=inside, other=float("inf"))
        least = tl.minimum(least, tl.min(low, axis=0))
        high = tl.load(at + 2 * step, mask=inside, other=float("-inf"))
        most = tl.maximum(most, tl.max(high, axis=0))
    mean = total / length
    farthest = tl.where(there, tl.maximum(most - mean, mean - least), 0.0)
    # Not 0: a head without any difference must not be divided by.
    largest = tl.maximum(tl.max(farthest, axis=0), 1e-12)
    tl.store(mean_ptr + (sample * heads + head) * channels + channel, mean, mask=there)
    tl.store(largest_ptr + sample * heads + head, largest)


@triton.jit
def head_values_kernel(
    x_ptr,
    mean_ptr,
    largest_ptr,
    out_ptr,
    length,
    heads,
    channels,
    x_batch,
    x_row,
    CENTRED: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Some tokens of one head in e4m3, without the mean if ``CENTRED``, so that the largest of the
    head becomes 448.
    """
    sample, head = tl.program_id(2), tl.program_id(0)
    x, token, channel, inside = head_tile(x_ptr, length, channels, x_batch, x_row, TOKENS, CHANNELS)
    if CENTRED:
        mean_ptr += (sample * heads + head) * channels
        x -= tl.load(mean_ptr + channel, mask=channel < channels, other=0.0)[None, :]
    factor = 448.0 / tl.load(largest_ptr + sample * heads + head)
    values = tl.minimum(tl.maximum(x * factor, -448.0), 448.0)
    out = (sample * length + token.to(tl.int64))[:, None] * (heads * channels)
    out += head * channels + channel[None, :]
    tl.store(out_ptr + out, values.to(out_ptr.dtype.element_ty), mask=inside)


TOKENS = 64
"""Of one program."""
GROUPS = 32
"""Of tokens, whose sums are put together at a time."""


def quantise_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, L, H, d]`` in e4m3 and the scale of every head, ``[B, H]``."""
    x, sizes, grid, block = _laid_out(x)
    batch, _, heads, _ = x.shape
    # Not 0: a head of zeros must not be divided by.
    largest = torch.full((batch, heads), 1e-12, dtype=torch.float32, device=x.device)
    head_largest_kernel[grid](x, largest, *sizes, TOKENS=TOKENS, CHANNELS=block, num_warps=4)
    return _values(x, None, largest), largest / 448.0


def quantise_centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, L, H, d]`` without the mean over L in e4m3, scales ``[B, H]``, means ``[B, H, d]``."""
    x, sizes, grid, block = _laid_out(x)
    batch, length, heads, channels = x.shape
    groups = grid[1]
    parts = x.new_empty((3, batch, heads, groups, channels), dtype=torch.float32)
    mean = x.new_empty((batch, heads, channels), dtype=torch.float32)
    largest = x.new_empty((batch, heads), dtype=torch.float32)
    channel_parts_kernel[grid](x, parts, *sizes, TOKENS=TOKENS, CHANNELS=block, num_warps=4)
    channel_means_kernel[(heads, batch)](
        parts, mean, largest, length, groups, heads, channels,
        GROUPS=GROUPS, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    return _values(x, mean, largest), largest / 448.0, mean


def _laid_out(x: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, int, int], int]:
    """``x`` with its heads side by side, sizes and grid of a launch, channels of a program."""
    batch, length, heads, channels = x.shape
    if x.stride(-1) != 1 or x.stride(-2) != channels:
        x = x.contiguous()
    sizes = (length, heads, channels, x.stride(0), x.stride(1))
    # Programs that run side by side take the heads of the same tokens, which lie side by side.
    grid = (heads, triton.cdiv(length, TOKENS), batch)
    return x, sizes, grid, triton.next_power_of_2(channels)


def _values(x: Tensor, mean: Tensor | None, largest: Tensor) -> Tensor:
    """The numbers of every head, of which ``largest`` becomes 448."""
    x, sizes, grid, block = _laid_out(x)
    out = torch.empty(x.shape, dtype=E4M3, device=x.device)
    head_values_kernel[grid](
        x,
        largest if mean is None else mean,
        largest,
        out,
        *sizes,
        CENTRED=mean is not None,
        TOKENS=TOKENS,
        CHANNELS=block,
        num_warps=4,
    )
    return out
