"""The window: what the model sees of the past, as a plain value.

29 latent frames in a fixed order, ``anchor 1 | long 16 | mid 2 | recent 1 | nine to come``, at
positions 0 to 28 whatever the absolute time (specification "model and sampling", section 2.2).
Positions relative to the window are what lets a video go on without end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHUNK_POSITIONS",
    "HISTORY_FRAMES",
    "LONG_POSITIONS",
    "MID_POSITIONS",
    "PAST_FRAMES",
    "SHORT_POSITIONS",
    "HistoryWindow",
]

LONG, MID, RECENT = 16, 2, 1
PAST_FRAMES = LONG + MID + RECENT
"""Latent frames of the immediate past (19), without the anchor."""
HISTORY_FRAMES = 1 + PAST_FRAMES
"""Latent frames in a window (20): the anchor and the past."""

LONG_POSITIONS = tuple(range(1, 17))
MID_POSITIONS = (17, 18)
SHORT_POSITIONS = (0, 19)
"""The anchor and the most recent frame share one patcher."""
CHUNK_POSITIONS = tuple(range(20, 29))


@dataclass(frozen=True)
class HistoryWindow:
    """Latent frames of the past and which of them exist.

    Attributes:
        frames: ``[B, C, 20, h, w]`` in the order anchor, long (oldest first), mid, recent.
            A frame that does not exist is zero.
        present: ``[B, 20]`` bool; corruption and statistics touch only present frames.
    """

    frames: Tensor
    present: Tensor

    def __post_init__(self) -> None:
        """Check the shapes once, at the door."""
        if self.frames.ndim != 5 or self.frames.shape[2] != HISTORY_FRAMES:
            raise ValueError(f"frames must be [B, C, 20, h, w], got {tuple(self.frames.shape)}")
        if tuple(self.present.shape) != (self.frames.shape[0], HISTORY_FRAMES):
            raise ValueError(f"present must be [B, 20], got {tuple(self.present.shape)}")

    @property
    def anchor(self) -> Tensor:
        """First latent frame of the video, ``[B, C, 1, h, w]``."""
        return self.frames[:, :, :1]

    @property
    def long(self) -> Tensor:
        """The sixteen oldest frames of the past, ``[B, C, 16, h, w]``."""
        return self.frames[:, :, 1 : 1 + LONG]

    @property
    def mid(self) -> Tensor:
        """The two frames before the last, ``[B, C, 2, h, w]``."""
        return self.frames[:, :, 1 + LONG : 1 + LONG + MID]

    @property
    def recent(self) -> Tensor:
        """The last frame, ``[B, C, 1, h, w]``."""
        return self.frames[:, :, -RECENT:]

    @property
    def short(self) -> Tensor:
        """Anchor and last frame, ``[B, C, 2, h, w]``: the two kept at full detail."""
        return torch.cat((self.anchor, self.recent), dim=2)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HistoryWindow:
        """The same window elsewhere; ``dtype`` applies to the latents only."""
        return HistoryWindow(
            self.frames.to(device=device, dtype=dtype), self.present.to(device=device)
        )
