"""Attention: every query looks at every key.

One function over several implementations. Which one runs depends on the device, the dtype and the
number of keys only (:func:`choose`), so it is the same from one call to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from helios.kernels.dispatch import (
    FLASH3_MODULES,
    Machine,
    is_fast,
    machine_of,
    say_once,
    uses_triton,
)
from helios.kernels.e4m3 import E4M3, E4M3_MAX

__all__ = [
    "Backend",
    "Heads8",
    "attention",
    "attention_e4m3",
    "choose",
    "quantise_centred",
    "quantise_heads",
]

Backend = Literal["plain", "flash", "cudnn", "flash3"]
"""``plain`` is PyTorch's own choice, on a CPU and for what the others cannot take."""

Heads8 = tuple[Tensor, Tensor]
"""Queries, keys or values in e4m3, ``[B, L, H, d]``, and the scale of every head, ``[B, H]``."""

FLASH3_FROM = 2048
"""Keys from which FlashAttention-3 beats cuDNN on Hopper: 256 against 288 µs at 2,940 of them."""
_HEAD_LIMIT = 128
_ORDER: dict[Backend, list[SDPBackend]] = {
    "cudnn": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
    "flash": [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
}
"""What PyTorch tries, in this order, where its first choice cannot take the input."""


def choose(
    machine: Machine, dtype: torch.dtype, channels: int, keys: int, *, gradient: bool = False
) -> Backend:
    """The implementation for inputs of this kind.

    Args:
        machine: what the device can do.
        dtype: of queries, keys and values.
        channels: of a head.
        keys: number of keys.
        gradient: a backward pass will follow; FlashAttention-3 comes without one.
    """
    if machine.capability is None or machine.capability < (8, 0) or dtype.itemsize != 2:
        return "plain"
    fits = channels % 8 == 0 and channels <= _HEAD_LIMIT
    if machine.runs_flash3 and fits and not gradient:
        if keys >= FLASH3_FROM and dtype == torch.bfloat16:
            return "flash3"
    elif machine.capability[0] == 9 and not gradient and keys >= FLASH3_FROM:
        say_once("FlashAttention-3 is not installed: cuDNN is used (pip install fa3-fwd)")
    if machine.cudnn and fits and machine.capability >= (9, 0):
        return "cudnn"
    return "flash"


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, backend: Backend | None = None
) -> Tensor:
    """``softmax(q kᵀ / sqrt(d)) v`` per head, without a mask.

    Args:
        query: ``[B, L, H, d]``.
        key: ``[B, M, H, d]``.
        value: ``[B, M, H, d]``, of the dtype of ``query`` and ``key``.
        backend: which implementation; chosen by :func:`choose` if not given.

    Returns:
        ``[B, L, H, d]``.
    """
    if backend is None and is_fast(query) and not torch.compiler.is_compiling():
        inputs = (query, key, value)
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        machine = machine_of(query.device)
        shape = (query.dtype, query.shape[-1], key.shape[1])
        backend = choose(machine, *shape, gradient=gradient)
    if backend == "flash3":
        return _flash3()(query, key, value)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    if backend is None or backend == "plain":
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(_ORDER[backend], set_priority=True):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def quantise_heads(x: Tensor) -> Heads8:
    """``[B, L, H, d]`` in e4m3 with one scale per sample and head, ``[B, H]``; no gradient."""
    if uses_triton(x):
        from helios.kernels.scaled_triton import quantise_heads as fast

        return fast(x.detach())
    return plain_quantise_heads(x)


@torch.no_grad()
def plain_quantise_heads(x: Tensor) -> Heads8:
    """The formula of :func:`quantise_heads`."""
    wide = x.float()
    largest = wide.abs().amax(dim=(1, 3)).clamp(min=1e-12)
    values = wide * (E4M3_MAX / largest)[:, None, :, None]
    return values.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), largest / E4M3_MAX


def quantise_centred(x: Tensor) -> tuple[Heads8, Tensor]:
    """Values ``[B, M, H, d]`` less their mean over the keys, in e4m3, and that mean; no gradient.

    The weights of a softmax add up to one, so attention to the values is attention to what is left
    plus the mean. What every value has in common must not pass through Hopper's e4m3 products:
    they keep 14 bits of a running sum, and beside the sum of ten thousand equal numbers the next
    one is cut off (decision record 7).

    Returns:
        Numbers and scales as :func:`quantise_heads` gives them, and means ``[B, H, d]`` float32.
    """
    if uses_triton(x):
        from helios.kernels.scaled_triton import quantise_centred as fast

        values, scale, mean = fast(x.detach())
        return (values, scale), mean
    return plain_quantise_centred(x)


@torch.no_grad()
def plain_quantise_centred(x: Tensor) -> tuple[Heads8, Tensor]:
    """The formula of :func:`quantise_centred`."""
    wide = x.float()
    mean = wide.mean(dim=1)
    return plain_quantise_heads(wide - mean[:, None]), mean


@torch.no_grad()
def attention_e4m3(query: Heads8, key: Heads8, value: Heads8, mean: Tensor | None = None) -> Tensor:
    """:func:`attention` of e4m3 numbers, each times the scale of its sample and head.

    FlashAttention-3 multiplies them as they are and rounds the probabilities to e4m3 as well;
    elsewhere they are widened first.

    Args:
        query: ``[B, L, H, d]`` of dtype ``float8_e4m3fn`` and its scales ``[B, H]``.
        key: ``[B, M, H, d]`` likewise.
        value: ``[B, M, H, d]`` likewise.
        mean: ``[B, H, d]`` float32, what `quantise_centred` took from the values, to be added.

    Returns:
        ``[B, L, H, d]`` bfloat16.
    """
    mixed = _centred_attention(query, key, value)
    return mixed if mean is None else (mixed + mean[:, None]).to(mixed.dtype)


def _centred_attention(query: Heads8, key: Heads8, value: Heads8) -> Tensor:
    heads, scales = zip(query, key, value)
    place = query[0].device
    if is_fast(query[0]) and machine_of(place).runs_flash3:
        names = ("q_descale", "k_descale", "v_descale")
        return _flash3()(*heads, **dict(zip(names, scales)))
    wide = [(x.float() * s[:, None, :, None]).bfloat16() for x, s in zip(heads, scales)]
    return attention(wide[0], wide[1], wide[2])


@cache
def _flash3() -> Callable[..., Tensor]:
    """FlashAttention-3's forward function, by whichever of its two names is installed."""
    module: Any = None
    for name in FLASH3_MODULES:
        try:
            module = import_module(name)
            break
        except (ImportError, OSError):
            continue
    function = module.flash_attn_func

    def call(query: Tensor, key: Tensor, value: Tensor, **scales: Tensor) -> Tensor:
        out = function(query, key, value, **scales)
        # Older releases return the log-sum-exp as well.
        return out[0] if isinstance(out, tuple) else out

    return call
