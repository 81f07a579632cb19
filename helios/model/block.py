"""One transformer block: self-attention, text, feed-forward, each with its modulation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.kernels import gated_add, layer_norm, modulated_norm
from helios.model.attention import CrossAttention, Rotation, SelfAttention
from helios.model.config import TransformerConfig

__all__ = ["Block"]


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
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to the same shape."""
        return self.contract(F.gelu(self.expand(x), approximate="tanh"))


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
        self, x: Tensor, text: Tensor, rows: Tensor, rotation: Rotation, split: int
    ) -> Tensor:
        """One step of the residual stream.

        Args:
            x: ``[B, L, D]`` tokens, of which the first ``split`` are history.
            text: ``[B, M, D]`` projected text.
            rows: ``[B, 2, 6, D]`` time modulation of history and of noisy tokens.
            rotation: rotary tables of the sequence.
            split: number of history tokens.
        """
        table = (self.modulation[:, None] + rows.float()).unbind(dim=2)
        shift1, scale1, gate1, shift2, scale2, gate2 = table
        n = modulated_norm(x, shift1, scale1, split, self.eps)
        x = gated_add(x, self.self_attention(n, rotation, split), gate1, split)
        x = self._read_text(x, text, split)
        n = modulated_norm(x, shift2, scale2, split, self.eps)
        return gated_add(x, self.feed_forward(n), gate2, split)

    def _read_text(self, x: Tensor, text: Tensor, split: int) -> Tensor:
        """Cross-attention with its residual; no gate, and no history unless configured."""
        if not self.text_to_noisy_only:
            return x + self.cross_attention(self.cross_norm(x), text)
        history, noisy = x[:, :split], x[:, split:]
        noisy = noisy + self.cross_attention(self.cross_norm(noisy), text)
        return torch.cat((history, noisy), dim=1)
