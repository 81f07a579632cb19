"""Several noisy inputs of one chunk in one sequence: ``[history | noisy] [history | noisy] …``.

Training on a pyramid asks the same transformer about every scale of a chunk. Packed, every linear
layer is one product over all scales; attention keeps the segments apart, each of which carries its
own copy of history and its own timestep (training.md, 4.3). The answers and the gradients are those
of one pass per scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from helios.history import HistoryWindow
from helios.kernels import gated_add, modulated_norm, varlen_attention
from helios.model.attention import Rotation, SelfAttention
from helios.model.block import Block
from helios.model.patch import unpatch
from helios.model.transformer import HeliosTransformer, grid

__all__ = ["PackedBlock", "Segments", "packed_block", "packed_forward", "recomputed"]


class Segments(NamedTuple):
    """How a packed sequence is cut.

    Attributes:
        history: history tokens at the beginning of every segment.
        noisy: noisy tokens of each segment.
    """

    history: int
    noisy: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each segment."""
        return tuple(self.history + count for count in self.noisy)


PackedBlock: TypeAlias = Callable[[Block, Tensor, Tensor, Tensor, Rotation, Segments], Tensor]
"""`packed_block`, or that function compiled."""


def packed_forward(
    model: HeliosTransformer,
    inputs: Sequence[Tensor],
    timesteps: Sequence[Tensor],
    text: Tensor,
    window: HistoryWindow,
    *,
    run_block: PackedBlock | None = None,
) -> list[Tensor]:
    """What ``model(x, timestep, text, window)`` gives for each input, in one pass.

    Args:
        model: the transformer.
        inputs: each ``[B, C, T, h, w]``, of any even size.
        timesteps: one ``[B]`` for each input, on the scale 0 to 1000.
        text: ``[B, M, text_dim]`` text embeddings.
        window: history of the same batch at full resolution.
        run_block: another form of `packed_block`.

    Raises:
        ValueError: if there is nothing to pack, numbers differ or sizes are odd.
    """
    if not inputs or len(inputs) != len(timesteps):
        raise ValueError(f"{len(inputs)} inputs need as many timesteps, got {len(timesteps)}")
    step = run_block or packed_block
    grids = [grid(x) for x in inputs]
    window = model.remembered(window)
    rotation = _joined([model.rotation(chunk, window) for chunk in grids])
    past = torch.cat(model.patches.past(window), dim=1)
    noisy = [model.patches.noisy(x.to(model.dtype)) for x in inputs]
    segments = Segments(past.shape[1], tuple(part.shape[1] for part in noisy))
    tokens = torch.cat([part for one in noisy for part in (past, one)], dim=1)
    head_time, rows = model.time_rows(torch.cat(list(timesteps)), tokens.dtype)
    rows = rows.unflatten(0, (len(inputs), -1)).transpose(0, 1)
    text = model.text(text.to(model.dtype))
    for block in model.blocks:
        tokens = step(cast(Block, block), tokens, text, rows, rotation, segments)
    ends = zip(tokens.split(segments.lengths, dim=1), head_time.chunk(len(inputs)), grids)
    return [
        unpatch(model.head(part[:, segments.history :], time), *chunk).to(model.dtype)
        for part, time, chunk in ends
    ]


def packed_block(
    block: Block,
    x: Tensor,
    text: Tensor,
    rows: Tensor,
    rotation: Rotation,
    segments: Segments,
) -> Tensor:
    """``block`` over a packed sequence; the steps are those of ``Block.forward``.

    Args:
        block: whose parameters are used.
        x: ``[B, L, D]`` tokens of all segments.
        text: ``[B, M, D]`` projected text, read by all segments.
        rows: ``[B, S, 2, 6, D]`` time modulation of history and of noisy tokens, by segment.
        rotation: rotary tables of the whole sequence.
        segments: how the sequence is cut.
    """
    table = (block.modulation[:, None, None] + rows.float()).unbind(dim=3)
    shift1, scale1, gate1, shift2, scale2, gate2 = table
    n = _modulated(x, shift1, scale1, segments, block.eps)
    x = _gated(x, _self_attention(block.self_attention, n, rotation, segments), gate1, segments)
    x = _read_text(block, x, text, segments)
    n = _modulated(x, shift2, scale2, segments, block.eps)
    return _gated(x, block.feed_forward(n), gate2, segments)


def recomputed(run_block: PackedBlock) -> PackedBlock:
    """``run_block`` keeping only its inputs, and run again when its gradient is asked for."""

    def run(*args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return run_block(*args)
        result: Tensor = checkpoint(run_block, *args, use_reentrant=False, preserve_rng_state=False)
        return result

    return run


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, segments: Segments, eps: float) -> Tensor:
    """Every segment with its own two rows of ``[B, S, 2, D]``."""
    parts = zip(x.split(segments.lengths, dim=1), shift.unbind(1), scale.unbind(1))
    return torch.cat([modulated_norm(*part, segments.history, eps) for part in parts], dim=1)


def _gated(x: Tensor, update: Tensor, gate: Tensor, segments: Segments) -> Tensor:
    lengths = segments.lengths
    parts = zip(x.split(lengths, dim=1), update.split(lengths, dim=1), gate.unbind(1))
    return torch.cat([gated_add(*part, segments.history) for part in parts], dim=1)


def _self_attention(
    module: SelfAttention, x: Tensor, rotation: Rotation, segments: Segments
) -> Tensor:
    """Each segment attends to itself."""
    query, key, value = module.project(x, rotation)
    if module.restricted or module.history_gain is not None:
        cut = zip(*(part.split(segments.lengths, dim=1) for part in (query, key, value)))
        mixed = torch.cat([module.mix(q, k, v, segments.history) for q, k, v in cut], dim=1)
    else:
        mixed = varlen_attention(query, key, value, segments.lengths)
    return module.out(mixed.flatten(2))


def _read_text(block: Block, x: Tensor, text: Tensor, segments: Segments) -> Tensor:
    """Tokens do not meet while they read, so all noisy ones read in one call."""
    if not block.text_to_noisy_only:
        return x + block.cross_attention(block.cross_norm(x), text)
    pieces = [
        (part[:, : segments.history], part[:, segments.history :])
        for part in x.split(segments.lengths, dim=1)
    ]
    noisy = torch.cat([late for _, late in pieces], dim=1)
    noisy = noisy + block.cross_attention(block.cross_norm(noisy), text)
    read = noisy.split(segments.noisy, dim=1)
    return torch.cat([t for (early, _), late in zip(pieces, read) for t in (early, late)], dim=1)


def _joined(tables: Sequence[Rotation]) -> Rotation:
    """Rotary tables of several sequences as those of one."""
    cos, sin = zip(*tables)
    return torch.cat(cos, dim=-2), torch.cat(sin, dim=-2)
