"""Normalisation and modulation.

The transformer modulates every token with one of only two sets of vectors per sample: one for the
history tokens, which come first, and one for the noisy tokens. The functions here take the two
sets as ``[B, 2, D]`` and the place where the sequence changes hands, so that a table with one row
per token is never made. All arithmetic is float32 with one rounding to the dtype of ``x``
(specification "model and sampling", sections 3.2 and 3.5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gated_add", "layer_norm", "modulated_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis: ``x / sqrt(mean(x²) + eps) * weight``.

    Args:
        x: ``[..., D]``, any float dtype; the result has the same.
        weight: ``[D]`` gains.
        eps: added to the mean square.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Args:
        x: ``[..., D]``, any float dtype; the result has the same.
        weight: ``[D]`` gains.
        bias: ``[D]`` offsets.
        eps: added to the (biased) variance.
    """
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, split: int, eps: float) -> Tensor:
    """Layer norm without gains, then ``n * (1 + scale) + shift`` with the row of each token.

    Args:
        x: ``[B, L, D]``; the result has its shape and dtype.
        shift: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``, row 1 for the rest.
        scale: ``[B, 2, D]`` float32, likewise.
        split: number of history tokens.
        eps: added to the (biased) variance.
    """
    normal = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    parts = (normal[:, :split], normal[:, split:])
    rows = (part * (1 + scale[:, i, None]) + shift[:, i, None] for i, part in enumerate(parts))
    return torch.cat([row.to(x.dtype) for row in rows], dim=1)


def gated_add(x: Tensor, update: Tensor, gate: Tensor, split: int) -> Tensor:
    """Residual addition ``x + update * gate`` with the row of each token.

    Args:
        x: ``[B, L, D]``; the result has its shape and dtype.
        update: ``[B, L, D]``.
        gate: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``, row 1 for the rest.
        split: number of history tokens.
    """
    pairs = ((x[:, :split], update[:, :split]), (x[:, split:], update[:, split:]))
    sums = (a.float() + b.float() * gate[:, i, None] for i, (a, b) in enumerate(pairs))
    return torch.cat([total.to(x.dtype) for total in sums], dim=1)
