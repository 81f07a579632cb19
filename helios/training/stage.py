"""A stage: which modules learn, and what one step computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from helios.distributed import World
from helios.training.optim import OptimizerConfig

__all__ = [
    "Alternating",
    "Player",
    "Stage",
    "StageConfig",
    "go_to",
    "nested",
    "position",
    "under",
]


class Stage(Protocol):
    """What the trainer asks of a stage. The stage owns its objective, its data and its noise."""

    @property
    def model(self) -> nn.Module:
        """The parameters that learn, float32, on the device."""
        ...

    def prepare(self) -> None:
        """Get the data ready, from the start or from where `load_state_dict` says."""
        ...

    def batch(self, progress: float) -> Any:
        """The next data; ``len`` of it counts samples. ``progress`` is the share of the run."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch and named scalars to log, all on the device."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the data and random states of this rank."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position; called before `prepare`."""
        ...

    def sample(self, averaged: nn.Module, folder: Path) -> None:
        """Write samples that ``averaged``, a copy of the model, makes."""
        ...

    def save(self, averaged: nn.Module, folder: Path) -> None:
        """Write ``averaged`` as a result in the published layout, quickly."""
        ...

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """What the result is worth, on data that training never shows."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Player:
    """Parameters that learn by a loss and an optimizer of their own.

    Attributes:
        module: those of its parameters that want a gradient learn.
        loss: of a batch, with named scalars to log.
        optimizer: how they move.
        averaged: whether the result is their average; its parameters are then in the stage's
            ``model``.
    """

    module: nn.Module
    loss: Callable[[Any], tuple[Tensor, Mapping[str, Tensor]]]
    optimizer: OptimizerConfig
    averaged: bool = True


@runtime_checkable
class Alternating(Protocol):
    """What a stage adds in which several learn in turn, each from a batch of its own."""

    def players(self, optimizer: OptimizerConfig) -> Mapping[str, Player]:
        """Who learns; ``optimizer`` is the run's, for those that have none of their own."""
        ...

    def turns(self, step: int) -> Sequence[str]:
        """Who learns in ``step``, in this order."""
        ...


class StageConfig(Protocol):
    """The configuration of a stage knows how to build it."""

    def build(self, world: World, *, seed: int, compiled: bool) -> Stage:
        """The stage on this rank's device, its parameters fresh from ``seed``."""
        ...


class Resumable(Protocol):
    """Data that can say where it is, and go back there."""

    def state_dict(self) -> dict[str, Tensor]:
        """Where it is."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back."""
        ...


def position(data: Resumable, noise: torch.Generator) -> dict[str, Tensor]:
    """The state of a stage whose randomness is its data and one generator."""
    return {**nested("data", data.state_dict()), "noise": noise.get_state()}


def go_to(state: Mapping[str, Tensor], data: Resumable, noise: torch.Generator) -> None:
    """Take ``data`` and ``noise`` back to a `position`."""
    data.load_state_dict(under("data", state))
    noise.set_state(state["noise"].cpu().clone())


def nested(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with ``prefix.`` before every name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `nested`: those under ``prefix.``, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
