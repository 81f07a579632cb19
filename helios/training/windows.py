"""What student and critic are asked about: sections with their pasts, and noisy samples of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from helios.history import HistoryWindow

__all__ = ["Noised", "Windows"]

TIMESTEPS = 1000.0


@dataclass(frozen=True, eq=False)
class Windows:
    """Real sections with their damaged pasts, or all of them without a past.

    Attributes:
        clean: ``[B, C, 9, h, w]`` the sections.
        window: their pasts as the scores see them.
        own: their pasts as the student sees them.
        text: ``[B, L, D]`` captions as the student reads them.
        score_text: as the teacher reads them.
        first: whether they have no past, and are made as the first chunk of a video.
        progress: share of the run that is over.
    """

    clean: Tensor
    window: HistoryWindow
    own: HistoryWindow
    text: Tensor
    score_text: Tensor
    first: bool
    progress: float

    def __len__(self) -> int:
        return len(self.clean)


class Noised(NamedTuple):
    """A sample on its way: ``x = (1 - sigma) clean + sigma noise``."""

    x: Tensor
    noise: Tensor
    sigma: Tensor

    @property
    def timestep(self) -> Tensor:
        """What the teacher is told."""
        return TIMESTEPS * self.sigma
