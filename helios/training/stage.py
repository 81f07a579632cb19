"""A stage: which modules learn, and what one step computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from helios.distributed import World

__all__ = ["Stage", "StageConfig", "go_to", "nested", "position", "under"]


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
