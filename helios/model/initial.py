"""Parameters to start training from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from helios.model.attention import HeadsNorm
from helios.model.block import Block, TokenNorm
from helios.model.patch import Patch
from helios.model.transformer import Head, HeliosTransformer

__all__ = ["init_memory_patches", "reset_parameters"]


@torch.no_grad()
def init_memory_patches(model: HeliosTransformer) -> None:
    """Make every memory patcher "average the latents, then the noisy patcher" (training.md, 0.4).

    To be called after pretrained weights are loaded, since it copies them.
    """
    patches = model.patches
    for patch, ratio in ((patches.short, 1), (patches.mid, 2), (patches.long, 4)):
        spread: Tensor = patches.noisy.weight
        for axis in (2, 3, 4):
            spread = spread.repeat_interleave(ratio, axis)
        patch.weight.copy_(spread / ratio**3)
        patch.bias.copy_(patches.noisy.bias)


@torch.no_grad()
def reset_parameters(model: HeliosTransformer, generator: torch.Generator | None = None) -> None:
    """Fresh parameters for training from scratch (tiny.md, section 4).

    Linear layers and patchers are Xavier-uniform without bias, modulation tables are
    ``N(0, 1) / sqrt(D)``, memory patchers start as averages, and the layers that decide the size
    of the output and of the time modulation start small.

    Args:
        model: changed in place; on the device of ``generator``.
        generator: source of all random numbers.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Patch):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            # An absent frame is zero and its token is the bias alone. Were that zero too, the
            # layer norm would multiply its gradient by 1 / sqrt(eps).
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, (Block, Head)):
            table: Tensor = module.modulation
            nn.init.normal_(table, std=table.shape[-1] ** -0.5, generator=generator)
        elif isinstance(module, (HeadsNorm, TokenNorm)):
            nn.init.ones_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith(("cross_norm.bias", "history_gain")):
            nn.init.zeros_(parameter)
    model.head.project.weight.mul_(0.1)
    model.time.project.weight.mul_(0.3)
    init_memory_patches(model)
