"""Attention: every query looks at every key."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attention"]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(q kᵀ / sqrt(d)) v`` per head, without a mask.

    Args:
        query: ``[B, L, H, d]``.
        key: ``[B, M, H, d]``.
        value: ``[B, M, H, d]``, of the dtype of ``query`` and ``key``.

    Returns:
        ``[B, L, H, d]``.
    """
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
