"""Real or made: heads on the hidden states of a critic, and what they teach both sides.

Convention: logits of samples that are made go up, those of real ones down (training specification,
6.7). The heads read the one transformer; they are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.history import HistoryWindow
from helios.model import HeliosTransformer

__all__ = [
    "AdversarialConfig",
    "Crop",
    "Discriminator",
    "cached_gradient",
    "draw_crop",
    "heads_loss",
    "judge",
    "student_loss",
]


SMALLEST = 8
"""Rows and columns of latents that a head needs: it halves their tokens twice."""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The adversarial term.

    Attributes:
        blocks: numbers of the blocks whose result has a head; the velocity has one more.
        width: channels of a head.
        groups: of its norms.
        crop: share of rows and columns that a sample is cut to; the same place for what is real
            and for its perturbed twin.
        student_weight: of the student's term.
        critic_weight: of each of the critic's two terms.
        r1_weight: of the penalty on how much logits of real samples change under noise.
        r1_sigma: deviation of that noise.
    """

    blocks: tuple[int, ...] = (5, 15, 25, 35)
    width: int = 768
    groups: int = 32
    crop: float = 0.5
    student_weight: float = 0.05
    critic_weight: float = 0.01
    r1_weight: float = 100.0
    r1_sigma: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if not self.blocks or min(self.blocks) < 0 or len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"blocks must be different numbers from 0, got {self.blocks}")
        if self.groups < 1 or self.width < 1 or self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups, got {self.width}, {self.groups}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {self.crop}")
        for name in ("student_weight", "critic_weight", "r1_weight", "r1_sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class Head(nn.Sequential):
    """Channels on a grid of frames, rows and columns to one logit, ``[B, C, T, Y, X]`` to ``[B]``.

    Args:
        channels: of the input.
        width: of every layer.
        groups: of every norm.
    """

    def __init__(self, channels: int, width: int, groups: int) -> None:
        layers: list[nn.Module] = []
        shapes: tuple[tuple[Any, Any, Any], ...] = (
            (3, 1, 1),
            (4, 2, 1),
            (4, 2, 1),
            (3, (2, 1, 1), 1),
            (3, (2, 1, 1), 1),
            ((1, 3, 3), 1, (0, 1, 1)),
        )
        for kernel, stride, padding in shapes:
            layers += [
                nn.Conv3d(channels, width, kernel, stride, padding),
                nn.GroupNorm(groups, width),
                nn.SiLU(),
            ]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """One logit per sample, ``[B]``."""
        logit: Tensor = super().forward(x)
        return logit[:, 0]


class Discriminator(nn.Module):
    """One head for each chosen block of a transformer, and one for its velocity.

    Args:
        config: which blocks, how wide.
        width: channels of the transformer's tokens.
        channels: channels of its velocity.
    """

    def __init__(self, config: AdversarialConfig, width: int, channels: int) -> None:
        super().__init__()
        self.blocks = config.blocks
        self.final = Head(channels, config.width, config.groups)
        self.heads = nn.ModuleList(Head(width, config.width, config.groups) for _ in config.blocks)

    def forward(self, velocity: Tensor, hidden: Mapping[int, Tensor]) -> Tensor:
        """Logits ``[B, 1 + blocks]``: of the velocity, then of the hidden states."""
        logits = [self.final(velocity)]
        logits += [head(hidden[block]) for head, block in zip(self.heads, self.blocks, strict=True)]
        return torch.stack(logits, dim=1)


class Crop(NamedTuple):
    """A part of the picture: rows and columns of latents, all even."""

    row: int
    column: int
    rows: int
    columns: int

    def of(self, x: Tensor) -> Tensor:
        """That part of ``[B, C, T, h, w]``."""
        rows = slice(self.row, self.row + self.rows)
        return x[..., rows, self.column : self.column + self.columns]


def draw_crop(rows: int, columns: int, share: float, generator: torch.Generator) -> Crop:
    """A part of a grid of latents, each even place equally often.

    Args:
        rows: of the grid, even.
        columns: likewise.
        share: of rows and of columns that is kept, rounded to even numbers that the heads can read.
        generator: on the CPU.
    """
    kept = [min(size, max(SMALLEST, 2 * round(size * share / 2))) for size in (rows, columns)]
    places = [
        2 * int(torch.randint((size - part) // 2 + 1, (), generator=generator))
        for size, part in zip((rows, columns), kept, strict=True)
    ]
    return Crop(*places, *kept)


def judge(
    transformer: HeliosTransformer,
    heads: Discriminator,
    x: Tensor,
    timestep: Tensor,
    text: Tensor,
    window: HistoryWindow,
    crop: Crop,
) -> Tensor:
    """Logits ``[B, heads]`` of a crop of noisy latents, which lies where it lies in the picture.

    Args:
        transformer: the critic, its adapter on.
        heads: on its hidden states.
        x: ``[B, C, 9, h, w]`` noisy latents, whole.
        timestep: ``[B]``.
        text: ``[B, L, D]``.
        window: the past of the same videos, whole.
        crop: what is judged.
    """
    part = crop.of(x)
    hidden: dict[int, Tensor] = dict.fromkeys(heads.blocks, part)
    velocity = transformer(
        part, timestep, text, window, origin=(crop.row, crop.column), hidden=hidden
    )
    return heads(velocity, hidden).float()


def student_loss(made: Tensor, config: AdversarialConfig) -> Tensor:
    """The student wants its logits where those of real samples are."""
    return config.student_weight * F.softplus(made).mean()


def heads_loss(
    made: Tensor, real: Tensor, perturbed: Tensor, config: AdversarialConfig
) -> dict[str, Tensor]:
    """What the critic is to make small: ``"made"``, ``"real"`` and ``"r1"``, weighted.

    Args:
        made: logits of what the student made.
        real: logits of real samples.
        perturbed: logits of the same with a little more noise.
        config: the weights.
    """
    return {
        "made": config.critic_weight * F.softplus(-made).mean(),
        "real": config.critic_weight * F.softplus(real).mean(),
        "r1": config.r1_weight * (real - perturbed).square().mean(),
    }


class _Cached(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def cached_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``loss(x)`` with its gradient for ``x`` and for nothing else, computed at once.

    What ``loss`` needs in between is freed before this returns, so that the graphs of student and
    critic are never in memory together (training specification, 7.2).
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    result: Tensor = _Cached.apply(x, value.detach(), gradient)
    return result
