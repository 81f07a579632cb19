"""An approximation: the history's keys and values of one step, used again by later steps.

In the published network history tokens attend to the noisy ones, so their keys and values change
a little with every step and only the first block's are the same throughout. Taking those of an
earlier step leaves out all work on history rows (a fifth of the full-size forward pass, three
quarters of the quarter-size one). It is exact for a network trained with ``restrict_self_attn``
and off by default everywhere (specification "performance", section 3c, 19).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from helios.history import HistoryWindow
from helios.kernels import modulated_norm
from helios.model.attention import KeyValue, Rotation
from helios.model.block import Block, Modulation
from helios.model.patch import unpatch
from helios.model.transformer import HeliosTransformer, StepRows, TextMemory, grid

__all__ = ["HistoryMemory", "forward_noisy", "forward_recorded"]

HistoryMemory = tuple[KeyValue, ...]
"""Rotated keys and values of the history tokens in every block, ``[B, Nh, H, d]`` each."""


def forward_recorded(
    model: HeliosTransformer, x: Tensor, rows: StepRows, text: TextMemory, window: HistoryWindow
) -> tuple[Tensor, HistoryMemory]:
    """The exact forward pass, and what history was in it.

    Args:
        model: the network.
        x: ``[B, C, T, h, w]`` noisy latents.
        rows: of the step.
        text: of the prompt.
        window: history of the same batch.

    Returns:
        The velocity, as ``model(x, rows, text, window)``, and the memory for `forward_noisy`.
    """
    chunk = grid(x)
    window = model.remembered(window)
    rotation = model.rotation(chunk, window)
    tokens, split = model.patches(x.to(model.dtype), window)
    kept: list[KeyValue] = []
    last = len(model.blocks) - 1
    for number, (block, m) in enumerate(_blocks(model, rows)):
        keep = number != last
        tokens, memory = _block(block, tokens, text.blocks[number], m, rotation, split, None, keep)
        kept.append(memory)
    return unpatch(model.head(tokens, rows.head), *chunk).to(model.dtype), tuple(kept)


def forward_noisy(
    model: HeliosTransformer,
    x: Tensor,
    rows: StepRows,
    text: TextMemory,
    window: HistoryWindow,
    memory: HistoryMemory,
) -> Tensor:
    """The forward pass over noisy tokens alone, history taken from ``memory``: an approximation.

    Arguments as for `forward_recorded`; ``window`` tells the size of the history only.
    """
    chunk = grid(x)
    rotation = model.rotation(chunk, window)
    split = memory[0][0].shape[1]
    late = (rotation[0][..., split:, :], rotation[1][..., split:, :])
    tokens = model.patches.noisy(x.to(model.dtype))
    for number, (block, m) in enumerate(_blocks(model, rows)):
        words, past = text.blocks[number], memory[number]
        tokens, _ = _block(block, tokens, words, m, late, 0, past, True)
    return unpatch(model.head(tokens, rows.head), *chunk).to(model.dtype)


def _blocks(model: HeliosTransformer, rows: StepRows) -> Sequence[tuple[Block, Modulation]]:
    return [
        (cast(Block, block), Modulation(*table.unbind(dim=2)))
        for block, table in zip(model.blocks, rows.blocks, strict=True)
    ]


def _block(
    block: Block,
    x: Tensor,
    text: KeyValue,
    m: Modulation,
    rotation: Rotation,
    split: int,
    past: KeyValue | None,
    keep_history: bool,
) -> tuple[Tensor, KeyValue]:
    """One block over its own tokens and, if given, the keys and values of a past that is not here.

    Also returned: the keys and values of the first ``split`` tokens.
    """
    attention = block.self_attention
    n = modulated_norm(x, m.shift1, m.scale1, split, block.eps, fp8=attention.fp8)
    query, key, value = attention.project(n, rotation, 0 if keep_history else split)
    memory = key[:, :split], value[:, :split]
    if past is None:
        mixed = attention.mix(query, key, value, split, keep_history=keep_history)
    else:
        before, (all_keys, all_values) = (
            past[0].shape[1],
            (torch.cat(pair, dim=1) for pair in zip(past, (key, value))),
        )
        mixed = attention.mix(query, all_keys, all_values, before, keep_history=False)
    update = attention.out(mixed.flatten(2))
    if not keep_history:
        x, split = x[:, split:], 0
    return block.after_attention(x, update, text, m, split), memory
