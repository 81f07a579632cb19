"""Projections, query-key norm, rotation; the attention itself is a kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from helios.kernels import apply_rope, attention, rms_norm
from helios.model.config import TransformerConfig

__all__ = ["CrossAttention", "Rotation", "SelfAttention"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of every token, ``[L, head_dim / 2]`` each."""


class HeadsNorm(nn.Module):
    """Root-mean-square norm over all heads together, with one gain per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)


class _Projections(nn.Module):
    """What both attentions have: four projections and the query-key norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.query_norm = HeadsNorm(width, config.eps)
        self.key_norm = HeadsNorm(width, config.eps)

    def split_heads(self, x: Tensor) -> Tensor:
        """``[B, L, H * d]`` to ``[B, L, H, d]``."""
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(_Projections):
    """Attention among history and noisy tokens (section 3.2, steps 3 to 8).

    With ``restrict_self_attn`` history looks at history only; else everything at everything.
    With ``is_amplify_history`` history keys are scaled by ``exp(history_gain)``, which starts at
    1; the published parameter is another function of the same factor (see weights.py).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.restricted = config.restrict_self_attn
        self.history_gain: nn.Parameter | None = None
        if config.is_amplify_history:
            factors = 1 if config.history_scale_mode == "scalar" else self.heads
            self.history_gain = nn.Parameter(torch.zeros(factors))

    def forward(self, x: Tensor, rotation: Rotation, split: int) -> Tensor:
        """``[B, L, D]`` to the same shape; the first ``split`` tokens are history."""
        return self.out(self.mix(*self.project(x, rotation), split).flatten(2))

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of ``[B, L, D]`` tokens: ``[B, L, H, d]`` each."""
        query = apply_rope(self.split_heads(self.query_norm(self.query(x))), *rotation)
        key = apply_rope(self.split_heads(self.key_norm(self.key(x))), *rotation)
        return query, key, self.split_heads(self.value(x))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, split: int) -> Tensor:
        """What every token takes from the others of its sequence, ``[B, L, H, d]``."""
        if self.history_gain is not None:
            # The gain is float32 and would widen the keys beyond what attention accepts.
            louder = key[:, :split] * self.history_gain.float().exp()[:, None]
            key = torch.cat((louder.to(key.dtype), key[:, split:]), dim=1)
        if self.restricted:
            past = attention(query[:, :split], key[:, :split], value[:, :split])
            return torch.cat((past, attention(query[:, split:], key, value)), dim=1)
        return attention(query, key, value)


class CrossAttention(_Projections):
    """Attention from tokens to the text (section 3.2, steps 12 and 13)."""

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """``[B, N, D]`` tokens and ``[B, M, D]`` projected text to ``[B, N, D]``."""
        query = self.split_heads(self.query_norm(self.query(x)))
        key = self.split_heads(self.key_norm(self.key(text)))
        return self.out(attention(query, key, self.split_heads(self.value(text))).flatten(2))
