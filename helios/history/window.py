"""The window: what the model sees of the past, as a plain value.

29 latent frames in a fixed order, ``anchor 1 | long 16 | mid 2 | recent 1 | nine to come``, at
positions 0 to 28 whatever the absolute time (specification "model and sampling", section 2.2).
Positions relative to the window are what lets a video go on without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        elapsed: ``[B]`` int64, latent frames of the video so far, including those the window no
            longer holds. Only a transformer with absolute positions reads it; None: not known.
    """

    frames: Tensor
    present: Tensor
    elapsed: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes once, at the door."""
        if self.frames.ndim != 5 or self.frames.shape[2] != HISTORY_FRAMES:
            raise ValueError(f"frames must be [B, C, 20, h, w], got {tuple(self.frames.shape)}")
        if tuple(self.present.shape) != (self.frames.shape[0], HISTORY_FRAMES):
            raise ValueError(f"present must be [B, 20], got {tuple(self.present.shape)}")
        if self.elapsed is not None and self.elapsed.shape != self.present.shape[:1]:
            raise ValueError(f"elapsed must be [B], got {tuple(self.elapsed.shape)}")

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

    @classmethod
    def stack(cls, windows: Sequence[HistoryWindow]) -> HistoryWindow:
        """One window of all the samples of several; what one does not know, the whole does not."""
        elapsed = [window.elapsed for window in windows if window.elapsed is not None]
        return cls(
            torch.cat([window.frames for window in windows]),
            torch.cat([window.present for window in windows]),
            torch.cat(elapsed) if len(elapsed) == len(windows) else None,
        )

    def of(self, samples: slice) -> HistoryWindow:
        """The windows of some samples of the batch."""
        elapsed = None if self.elapsed is None else self.elapsed[samples]
        return HistoryWindow(self.frames[samples], self.present[samples], elapsed)

    def without_anchor(self) -> HistoryWindow:
        """The same past with an anchor that does not exist."""
        frames = torch.cat((torch.zeros_like(self.anchor), self.frames[:, :, 1:]), dim=2)
        gone = torch.zeros_like(self.present[:, :1])
        return replace(self, frames=frames, present=torch.cat((gone, self.present[:, 1:]), dim=1))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HistoryWindow:
        """The same window elsewhere; ``dtype`` applies to the latents only."""
        return HistoryWindow(
            self.frames.to(device=device, dtype=dtype),
            self.present.to(device=device),
            None if self.elapsed is None else self.elapsed.to(device=device),
        )
