"""Activations computed twice instead of kept: what makes the large model trainable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from helios.model.block import Block
from helios.model.transformer import HeliosTransformer

__all__ = ["recompute_blocks"]


class _Recomputed(Block):
    """A block that keeps its input alone and runs again when its gradient is asked for."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Block.forward`."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        result: Tensor = checkpoint(
            super().forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
        return result


def recompute_blocks(transformer: HeliosTransformer) -> None:
    """Let every block of ``transformer`` keep only its input for the backward pass.

    Memory for a pass with gradients falls to one ``[B, L, D]`` per block and the insides of one
    block; time rises by the forward pass that is done again (training specification, 7.4). The
    blocks change their class, so names, parameters and copies stay what they are.
    """
    for block in transformer.blocks:
        block.__class__ = _Recomputed
