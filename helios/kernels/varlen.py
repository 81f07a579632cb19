"""Attention within segments: sequences that lie one after another and do not see each other.

Training on several resolutions packs them into one sequence, so that every linear layer is one
large product; only attention has to know where one ends and the next begins (training.md, 4.3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from helios.kernels.attention import attention

__all__ = ["by_segment", "in_one_call", "varlen_attention"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """``softmax(q kᵀ / sqrt(d)) v`` per head, within each segment of each sample.

    On CUDA in half precision all segments are one call of PyTorch's variable-length attention
    where that is there; elsewhere each length is one call for the whole batch.

    Args:
        query: ``[B, L, H, d]``.
        key: the same shape.
        value: the same shape.
        lengths: of the segments, in order, the same for every sample; they add up to L.

    Returns:
        ``[B, L, H, d]``.

    Raises:
        ValueError: if the lengths do not add up to L.
    """
    if sum(lengths) != query.shape[1] or min(lengths) < 1:
        raise ValueError(f"segments must be positive and add up to {query.shape[1]}, got {lengths}")
    return _pick(query)(query, key, value, lengths)


def _pick(query: Tensor) -> Callable[[Tensor, Tensor, Tensor, tuple[int, ...]], Tensor]:
    """The form that runs for inputs of this device and dtype."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and query.is_cuda and _has_varlen(query.device.index or 0):
        return in_one_call
    return by_segment


def by_segment(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The formula: each segment on its own; see `varlen_attention`."""
    parts = zip(*(tensor.split(lengths, dim=1) for tensor in (query, key, value)))
    return torch.cat([attention(*part) for part in parts], dim=1)


def in_one_call(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """All segments of all samples together; CUDA, float16 or bfloat16; see `varlen_attention`."""
    borders, longest = _borders(lengths, len(query), query.device), max(lengths)
    q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
    mixed = cast(Tensor, varlen_attn(q, k, v, borders, borders, longest, longest))
    return mixed.unflatten(0, query.shape[:2])


def _constant_in_graphs(function: _Function) -> _Function:
    return cast(_Function, torch.compiler.assume_constant_result(function))


# While a graph is traced the answers are asked for once and become part of it.
@_constant_in_graphs
def _has_varlen(index: int) -> bool:
    """Whether variable-length attention runs on this CUDA device."""
    return _probed(index)


@cache
def _probed(index: int) -> bool:
    place = torch.device("cuda", index)
    probe = torch.zeros(4, 1, 64, dtype=torch.bfloat16, device=place)
    ends = torch.tensor([0, 4], dtype=torch.int32, device=place)
    try:
        with torch.no_grad():
            varlen_attn(probe, probe, probe, ends, ends, 4, 4)
    except RuntimeError:  # a build without FlashAttention, or a GPU that is too old for it
        return False
    return True


@_constant_in_graphs
def _borders(lengths: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    """Where segments begin, and the end of the last: int32 ``[batch * segments + 1]``."""
    return _kept_borders(lengths, batch, device)


@lru_cache(maxsize=64)
def _kept_borders(lengths: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        ends = list(accumulate(lengths * batch, initial=0))
        return torch.tensor(ends, dtype=torch.int32).to(device)
