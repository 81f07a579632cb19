"""AdamW, the learning rate over a run, and the average of the parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Ema",
    "OptimizerConfig",
    "adamw",
    "averaged_copy",
    "ema_decay",
    "host_copy",
    "learning",
    "learning_rate",
]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up, a cosine, and clipped gradients.

    Attributes:
        lr: highest learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of weight matrices and kernels; gains and offsets are not decayed.
        clip: largest norm of the gradient of all parameters together.
        warmup_steps: steps over which the learning rate rises from near 0.
        final_share: share of ``lr`` that is left at the end.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup_steps: int = 100
    final_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot converge."""
        for name in ("lr", "eps", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be from 0 to below 1, got {self.betas}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share must be from 0 to 1, got {self.final_share}")


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Linear warm-up times a cosine from ``lr`` to ``final_share * lr``.

    Args:
        config: rates and warm-up.
        step: steps made so far; the first step has number 0.
        progress: share of the run that is over, 0 to 1.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    wave = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return config.lr * warm * (config.final_share + (1 - config.final_share) * wave)


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that learn; only matrices and kernels are decayed."""
    parameters = learning(model).values()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def ema_decay(step: int, highest: float) -> float:
    """Decay after ``step`` earlier updates: ``min((1 + s) / (10 + s), highest)``."""
    return min((1 + step) / (10 + step), highest)


class Ema:
    """Exponential moving average of the parameters of a module that learn, in their own dtype.

    What is frozen is not copied (training.md, 11, F27).

    Args:
        model: its parameters as they are now start the average.
        highest: highest decay.
    """

    def __init__(self, model: nn.Module, highest: float) -> None:
        self.highest = highest
        self.current = learning(model)
        self.weights = {name: p.detach().clone() for name, p in self.current.items()}

    @torch.no_grad()
    def update(self, step: int, enabled: Tensor) -> None:
        """``average += (1 - decay) * enabled * (parameter - average)``.

        Args:
            step: updates made before this one.
            enabled: scalar 1 or 0 on the device; 0 leaves the average as it is.
        """
        averages = list(self.weights.values())
        change = torch._foreach_sub([p.detach() for p in self.current.values()], averages)
        torch._foreach_mul_(change, enabled * (1 - ema_decay(step, self.highest)))
        torch._foreach_add_(averages, change)


@torch.no_grad()
def averaged_copy(model: nn.Module, averages: Sequence[Ema]) -> nn.Module:
    """A copy of ``model``, not compiled, in evaluation mode, with the averaged parameters.

    What does not learn is not copied but shared: beside a large frozen base the copy is as small
    as the adapter. Nothing may write to its parameters, nor give them another dtype or device.

    Args:
        model: holds every parameter that is averaged.
        averages: of all of it, or of parts of it.
    """
    copies: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    result = copy.deepcopy(model, copies)
    for average in averages:
        for name, parameter in average.current.items():
            copies[id(parameter)].copy_(average.weights[name])
    return result.requires_grad_(False).eval()


@torch.no_grad()
def host_copy(model: nn.Module) -> nn.Module:
    """A copy in host memory, made tensor by tensor, so that the device needs no room for it."""
    copies: dict[int, Any] = {}
    for parameter in model.parameters():
        held = parameter.detach().to("cpu", copy=True)
        copies[id(parameter)] = nn.Parameter(held, requires_grad=False)
    return copy.deepcopy(model, copies).to("cpu")
