"""Distribution matching: the gradient that moves a student's samples towards a teacher's.

With ``F`` and ``R`` the clean predictions of the fake and of the real score at a noised sample
``x_t = (1 - sigma) x + sigma eps`` of the student,

    g = (F - R) / mean |x - R|,        L = 1/2 mean (x - stop(x - g))^2,

so that ``dL/dx`` is ``g`` up to the mean: where the student's own distribution has more mass than
the teacher's, samples are pushed away (training specification, 6.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from helios.diffusion import ScheduleConfig

__all__ = [
    "DynamicRenoise",
    "draw_beta",
    "matching_gradient",
    "matching_loss",
]

_GRID = 4096


def matching_gradient(clean: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The normalised difference of the scores, float64, of the shape of ``clean [B, ...]``.

    Args:
        clean: what the student made.
        real: the teacher's prediction of it at a noisy sample of it.
        fake: the critic's.
    """
    x, r, f = (value.detach().double() for value in (clean, real, fake))
    distance = (x - r).abs().flatten(1).mean(dim=1)
    gradient = (f - r) / distance.view(-1, *[1] * (x.ndim - 1))
    return torch.nan_to_num(gradient)


def matching_loss(clean: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient for ``clean`` is ``gradient / clean.numel()``."""
    x = clean.double()
    return 0.5 * (x - (x - gradient).detach()).square().mean()


@dataclass(frozen=True, kw_only=True)
class DynamicRenoise:
    """At which noise levels the scores are asked: high ones first, later all alike.

    Levels are ``Beta(a, b)``, where ``(a, b)`` goes from ``(alpha, beta)`` to ``(1, 1)``, which is
    uniform, by half a cosine; then they are shifted and bounded (training specification, 6.5).

    Attributes:
        alpha, beta: at the start.
        fade: share of the run after which levels are uniform; 0: from the start.
        low, high: bounds of the shifted level.
    """

    alpha: float = 4.0
    beta: float = 1.5
    fade: float = 0.22
    low: float = 0.02
    high: float = 0.98

    def __post_init__(self) -> None:
        """Refuse what is no law."""
        if not 1 <= min(self.alpha, self.beta) <= max(self.alpha, self.beta) < math.inf:
            raise ValueError(f"alpha and beta must be at least 1, got {self.alpha}, {self.beta}")
        if not 0 <= self.fade <= 1:
            raise ValueError(f"fade must be from 0 to 1, got {self.fade}")
        if not 0 < self.low < self.high < 1:
            raise ValueError(f"low and high must rise within 0 to 1, got {self.low}, {self.high}")

    def parameters(self, progress: float) -> tuple[float, float]:
        """``(a, b)`` when this share of the run is over."""
        done = 1.0 if progress >= self.fade else progress / self.fade
        wave = 0.5 * (1 + math.cos(math.pi * done))
        return 1 + (self.alpha - 1) * wave, 1 + (self.beta - 1) * wave

    def draw(
        self,
        n: int,
        progress: float,
        schedule: ScheduleConfig,
        tokens: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Levels ``[n]`` float32 on the device of ``generator``.

        Args:
            n: how many.
            progress: share of the run that is over; from 1 on they are uniform before the shift.
            schedule: whose shift moves them: the student's.
            tokens: of a chunk at full resolution.
            generator: of the draws.
        """
        drawn = draw_beta(n, *self.parameters(progress), generator)
        return schedule.shifted(drawn, tokens).clamp(self.low, self.high)


def draw_beta(n: int, a: float, b: float, generator: torch.Generator) -> Tensor:
    """``n`` numbers of the Beta distribution, a and b at least 1, from uniform ones.

    PyTorch's own sampler takes no generator. The distribution function is inverted in a table; the
    error of a number is below 1 / 4096.
    """
    uniform = torch.rand(n, generator=generator, device=generator.device)
    if a == b == 1:
        return uniform
    table = _distribution(round(a, 4), round(b, 4)).to(generator.device, non_blocking=True)
    place = torch.searchsorted(table, uniform).clamp(1, _GRID)
    below, above = table[place - 1], table[place]
    part = (uniform - below) / (above - below).clamp_min(1e-12)
    return (place - 1 + part.clamp(0, 1)) / _GRID


@lru_cache(maxsize=8)
def _distribution(a: float, b: float) -> Tensor:
    """Distribution function of Beta(a, b) at ``0, 1 / 4096, ..., 1``, float32 on the CPU."""
    middle = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
    density = middle ** (a - 1) * (1 - middle) ** (b - 1)
    whole = torch.cat((density.new_zeros(1), density.cumsum(0)))
    return (whole / whole[-1]).float()
