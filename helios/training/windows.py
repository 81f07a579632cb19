"""What student and critic are asked about: sections with their pasts, and noisy samples of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from helios.diffusion import Pyramid
from helios.history import HistoryWindow

__all__ = ["Group", "Noised", "Windows"]

TIMESTEPS = 1000.0


@dataclass(frozen=True, eq=False)
class Windows:
    """Real sections with their damaged pasts, those without a past first.

    Attributes:
        clean: ``[B, C, 9, h, w]`` the sections.
        window: their pasts as the scores see them.
        own: their pasts as the student sees them.
        text: ``[B, L, D]`` captions as the student reads them.
        score_text: as the teacher reads them.
        first: how many of them have no past.
        progress: share of the run that is over.
    """

    clean: Tensor
    window: HistoryWindow
    own: HistoryWindow
    text: Tensor
    score_text: Tensor
    first: int
    progress: float

    def __len__(self) -> int:
        return len(self.clean)


class Group(NamedTuple):
    """Samples of a batch that are made with the same plan."""

    part: slice
    plan: Pyramid


class Noised(NamedTuple):
    """A sample on its way: ``x = (1 - sigma) clean + sigma noise``."""

    x: Tensor
    noise: Tensor
    sigma: Tensor

    @property
    def timestep(self) -> Tensor:
        """What the teacher is told."""
        return TIMESTEPS * self.sigma
