"""From clips to what a stage learns from: a section, the damaged past before it, and its text.

Every stage that learns sections of video cuts them here, so that the same past means the same
thing to the model that is distilled and to the one that distils (training.md, 2.2, 2.3 and 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helios.geometry import CHUNK_LATENTS
from helios.history import (
    CorruptionConfig,
    DropConfig,
    HistoryWindow,
    corrupt,
    cut_window,
    drop_history,
)

if TYPE_CHECKING:
    from helios.conditioning import TextEncoder

__all__ = ["Example", "cut_example", "drop_captions", "pick_sections", "read_tokens"]


@dataclass(frozen=True)
class Example:
    """Sections to learn and what comes before them.

    Attributes:
        window: the past, shortened and damaged.
        clean: ``[B, 16, 9, h, w]`` float32 latents of the sections.
        section: ``[B]`` int64, which section of its clip each is.
    """

    window: HistoryWindow
    clean: Tensor
    section: Tensor


def cut_example(
    latents: Tensor,
    *,
    first_share: float,
    drop: DropConfig,
    corruption: CorruptionConfig,
    generator: torch.Generator,
) -> Example:
    """One section of every clip with its past, as training shows them (training.md, 2.2, 2.3, 3).

    Args:
        latents: ``[B, 16, 9 S, h, w]`` clips of S sections from their beginning, any float dtype.
        first_share: share of samples that learn section 0; the others are equally often each
            later one.
        drop: how often the past is shortened.
        corruption: how what is left of it is damaged.
        generator: on the device of the latents.
    """
    section = pick_sections(len(latents), latents.shape[2] // CHUNK_LATENTS, first_share, generator)
    window, clean = cut_window(latents.float(), section)
    window = corrupt(drop_history(window, drop, generator), corruption, generator)
    return Example(window, clean, section)


def pick_sections(
    size: int, sections: int, first_share: float, generator: torch.Generator
) -> Tensor:
    """Which section of its clip each sample learns, ``[size]`` int64 on the generator's device."""
    device, last = generator.device, sections - 1
    if last == 0:
        return torch.zeros(size, dtype=torch.int64, device=device)
    first = torch.rand(size, generator=generator, device=device) < first_share
    later = torch.randint(1, last + 1, (size,), generator=generator, device=device)
    return torch.where(first, 0, later)


def drop_captions(
    tokens: Tensor, empty: Tensor, share: float, generator: torch.Generator
) -> Tensor:
    """Captions ``[B, L]``, about ``share`` of them replaced by the empty one ``[L]``.

    Likewise embeddings ``[B, L, D]`` by that of the empty one ``[L, D]``.

    The empty caption is the branch that guidance moves away from (training.md, 10.3).
    """
    shape = (len(tokens), *(1 for _ in tokens.shape[1:]))
    draw = torch.rand(shape, generator=generator, device=tokens.device)
    return torch.where(draw < share, empty, tokens)


def read_tokens(encoder: TextEncoder, tokens: Tensor) -> Tensor:
    """Text embeddings ``[B, L, D]`` of token ids ``[B, L]`` padded with 0."""
    embeddings: Tensor = encoder(tokens, (tokens != 0).long())
    return embeddings
