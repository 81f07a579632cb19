"""One transformer block: self-attention, text, feed-forward, each with its modulation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from helios.kernels import (
    Rows,
    Stream,
    gated_add,
    gated_add_layer_norm,
    gelu,
    layer_norm,
    linear_gelu,
    modulated_norm,
    rounds_late,
    text_add_modulated_norm,
)
from helios.model.attention import CrossAttention, KeyValue, Rotation, SelfAttention
from helios.model.config import TransformerConfig
from helios.model.fp8 import Fp8Linear, Projection, is_bare

__all__ = ["Block", "Modulation"]


class Modulation(NamedTuple):
    """The six vectors of a block at one step, ``[B, 2, D]`` float32, history row first."""

    shift1: Tensor
    scale1: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    gate2: Tensor


class TokenNorm(nn.Module):
    """Layer norm with gains and offsets, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to the same shape and dtype."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class FeedForward(nn.Module):
    """Two layers with a tanh-approximated GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand: Projection = nn.Linear(width, hidden)
        self.contract: Projection = nn.Linear(hidden, width)

    def forward(self, x: Rows) -> Tensor:
        """``[B, L, D]`` to the same shape."""
        fp8 = isinstance(self.contract, Fp8Linear)
        if is_bare(self.expand):
            return self.contract(linear_gelu(x, self.expand.weight, self.expand.bias, fp8=fp8))
        return self.contract(gelu(self.expand(x), fp8=fp8))


class Block(nn.Module):
    """A block over ``[history | noisy]`` tokens (section 3.2 of the specification)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.eps
        self.text_to_noisy_only = config.guidance_cross_attn
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)
        self.self_attention = SelfAttention(config)
        self.cross_norm = TokenNorm(width, config.eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(width, config.ffn_dim)

    def forward(
        self,
        x: Tensor,
        text: Tensor | KeyValue,
        rows: Tensor | Modulation,
        rotation: Rotation,
        split: int,
        *,
        keep_history: bool = True,
    ) -> Tensor:
        """One step of the residual stream.

        Args:
            x: ``[B, L, D]`` tokens, of which the first ``split`` are history.
            text: ``[B, M, D]`` projected text, or what `CrossAttention.read` made of it.
            rows: ``[B, 2, 6, D]`` time modulation of history and of noisy tokens, or what
                :meth:`modulate` made of it.
            rotation: rotary tables of the sequence.
            split: number of history tokens.
            keep_history: whether history leaves the block too; the last block's is never read.

        Returns:
            ``[B, L, D]``, or ``[B, L - split, D]`` without history.
        """
        m = self.modulate(rows) if isinstance(rows, Tensor) else rows
        fp8 = self.self_attention.fp8
        n = modulated_norm(x, m.shift1, m.scale1, split, self.eps, fp8=fp8)
        update = self.self_attention(n, rotation, split, keep_history=keep_history)
        if not keep_history:
            x, split = x[:, split:], 0
        return self.after_attention(x, update, text, m, split)

    def modulate(self, rows: Tensor) -> Modulation:
        """The six vectors of this block, from ``[B, 2, 6, D]`` time modulation."""
        return Modulation(*(self.modulation[:, None] + rows.float()).unbind(dim=2))

    def after_attention(
        self, x: Tensor, update: Tensor, text: Tensor | KeyValue, m: Modulation, split: int
    ) -> Tensor:
        """The rest of the block: the text, the feed-forward network, and the sum of all three.

        Reading has no gate, and history does not read unless configured.

        Args:
            x: ``[B, L, D]`` tokens as they entered the block, the first ``split`` history.
            update: ``[B, L, D]`` what self-attention gives.
            text: as for `forward`.
            m: modulation of the block.
            split: number of history tokens.
        """
        start = split if self.text_to_noisy_only else 0
        reader, norm = self.cross_attention, self.cross_norm
        fp8 = isinstance(self.feed_forward.expand, Fp8Linear)
        n: Rows
        if type(norm) is TokenNorm and rounds_late(x):
            stream = Stream(x=x, update=update, gate=m.gate1, split=split, start=start)
            n = stream.text_norm(norm.weight, norm.bias, norm.eps, fp8=reader.fp8)
            read = reader(n, text)
            n = stream.modulated_norm(read, m.shift2, m.scale2, self.eps, fp8=fp8)
            return stream.total(read, self.feed_forward(n), m.gate2)
        if type(norm) is TokenNorm:
            affine = (norm.weight, norm.bias, start, norm.eps)
            x, n = gated_add_layer_norm(x, update, m.gate1, split, *affine, fp8=reader.fp8)
        else:
            x = gated_add(x, update, m.gate1, split)
            n = norm(x[:, start:])
        second = (m.shift2, m.scale2, split, self.eps)
        x, n = text_add_modulated_norm(x, reader(n, text), start, *second, fp8=fp8)
        return gated_add(x, self.feed_forward(n), m.gate2, split)
