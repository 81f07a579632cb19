"""How strongly the prompt pulls: two velocities into one (specification, 6.7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["CFG", "CFGZero", "Denoiser", "Guidance", "combine", "guide"]

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(x [B, C, T, h, w], timestep [B]) -> velocity [B, C, T, h, w]``."""


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance: ``u + scale (c - u)``. No guidance at all is ``None``."""

    scale: float

    def __post_init__(self) -> None:
        """A scale is a finite number; at 1 guidance changes nothing."""
        _check_scale(self.scale)


@dataclass(frozen=True)
class CFGZero:
    """CFG-Zero*: the unconditional velocity is first fitted to the conditional one."""

    scale: float

    def __post_init__(self) -> None:
        """A scale is a finite number."""
        _check_scale(self.scale)


Guidance: TypeAlias = CFG | CFGZero


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale must be a finite number of at least 0, got {scale}")


def combine(cond: Tensor, uncond: Tensor, guidance: Guidance) -> Tensor:
    """The guided velocity, in the dtype of both inputs ``[B, ...]``.

    CFG-Zero* scales ``uncond`` per sample by ``<c, u> / (|u|^2 + 1e-8)``, computed in float32.
    """
    if isinstance(guidance, CFGZero):
        uncond = uncond * _projection(cond, uncond)
    return uncond + guidance.scale * (cond - uncond)


def _projection(cond: Tensor, uncond: Tensor) -> Tensor:
    flat_cond = cond.reshape(cond.shape[0], -1).float()
    flat_uncond = uncond.reshape(uncond.shape[0], -1).float()
    product = (flat_cond * flat_uncond).sum(dim=1)
    share = product / ((flat_uncond**2).sum(dim=1) + 1e-8)
    return share.to(cond.dtype).view(-1, *[1] * (cond.ndim - 1))


def guide(
    cond: Denoiser, uncond: Denoiser, guidance: Guidance, rounding: torch.dtype | None = None
) -> Denoiser:
    """A denoiser that asks ``cond`` and then ``uncond`` and combines what they say.

    A large scale magnifies every rounding of the combination, so it happens in float32 at least;
    ``rounding`` is the dtype of the model, to combine in that as the released pipelines do.
    """

    def guided(x: Tensor, timestep: Tensor) -> Tensor:
        answers = cond(x, timestep), uncond(x, timestep)
        dtype = rounding or torch.promote_types(answers[0].dtype, torch.float32)
        return combine(answers[0].to(dtype), answers[1].to(dtype), guidance)

    return guided
