"""Stage 3, first part: the student learns the teacher's trajectories (training.md, 5.2).

At a level that a few-step sampler visits, the student is to predict in one step where the teacher's
many steps end the stage. The past is the teacher's own, undamaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from helios.data import TRAJECTORIES, Leg, ShardReader, Trajectories
from helios.diffusion import ScheduleConfig, to_clean
from helios.distributed import World
from helios.errors import DataError
from helios.history import cut_window
from helios.model import bind
from helios.training.model_stage import ModelConfig, ModelStage
from helios.training.networks import parts_of
from helios.training.stage import go_to, position

__all__ = ["OdeConfig", "OdeStage"]


@dataclass(frozen=True, kw_only=True)
class OdeConfig(ModelConfig):
    """How a student learns from trajectories.

    Attributes:
        trajectories: folder that ``helios precompute trajectories`` wrote.
        sections: of each video that a step learns from, chosen at random for the batch.
        weight: of the loss.
        resident: keep all trajectories on the device; otherwise they are read as they are needed.
    """

    trajectories: Path | None = None
    sections: int = 3
    weight: float = 80.0
    resident: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        super().__post_init__()
        if self.sections < 1:
            raise ValueError(f"sections must be at least 1, got {self.sections}")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight must be positive, got {self.weight}")

    def build(self, world: World, *, seed: int, compiled: bool) -> OdeStage:
        """The stage with the parameters of ``initial``.

        Raises:
            ValueError: if a folder is not named.
            CheckpointError: if a folder does not hold what it should.
            DataError: if the trajectories are not complete, or were made for other noise levels.
        """
        return OdeStage(self, world, seed=seed, compiled=compiled)


class OdeStage(ModelStage):
    """Learns where each stage of a teacher's trajectory ends; see `ModelStage`."""

    config: OdeConfig

    def __init__(self, config: OdeConfig, world: World, *, seed: int, compiled: bool) -> None:
        super().__init__(config, world, seed=seed, compiled=compiled)
        if config.trajectories is None:
            raise ValueError(
                "this preset needs trajectories: give --set stage.trajectories=DIR, the --out of "
                "helios precompute trajectories"
            )
        parts_of(self.model)[1].requires_grad_(False)
        self._data = ShardReader(
            config.trajectories,
            TRAJECTORIES,
            batch=config.batch,
            device=world.device,
            seed=seed,
            rank=world.rank,
            size=world.size,
            resident=config.resident,
        )
        made = self._data.settings
        if ScheduleConfig.from_json(made["schedule"]) != config.schedule:
            raise DataError(
                f"{config.trajectories} was made for other noise levels than stage.schedule; "
                "choose another --shift in helios precompute"
            )
        self._levels = made["levels"]
        if config.sections > len(self._levels):
            raise DataError(
                f"{config.trajectories} has videos of {len(self._levels)} sections, "
                f"stage.sections asks for {config.sections}"
            )
        # The same on every rank: sections differ in length.
        self._choices = torch.Generator().manual_seed(seed)

    @property
    def _reads_text(self) -> bool:
        return False

    def prepare(self) -> None:
        """Open the trajectories."""
        self._data.prepare()

    def batch(self, progress: float) -> Trajectories:
        """The next videos."""
        return Trajectories.restore(self._data.batch(), self._levels)

    def loss(self, batch: Trajectories) -> tuple[Tensor, Mapping[str, Tensor]]:
        """``weight`` times the mean over sections and stages of half the squared error."""
        order = torch.randperm(len(batch.sections), generator=self._choices)
        chosen = sorted(order[: self.config.sections].tolist())
        losses = {
            stage: torch.stack(
                [self._error(batch, section, stage).mean() for section in chosen]
            ).mean()
            for stage in range(self.config.schedule.stages)
        }
        total = self.config.weight * torch.stack(list(losses.values())).mean()
        return total, {f"loss_stage_{stage}": value for stage, value in losses.items()}

    def _error(self, batch: Trajectories, section: int, stage: int) -> Tensor:
        """Half the squared error of each sample, ``[B]``, at a random kept level of each."""
        leg = batch.sections[section][stage]
        shape = (len(batch),)
        point = torch.randint(len(leg.sigmas), shape, generator=self.noise, device=self.device)
        x, sigma, timestep = at_point(leg, point)
        transformer, _ = parts_of(self.model)
        # Every section up to this one, though only those before it are seen.
        past = [legs[-1].states[:, -1].float() for legs in batch.sections[: section + 1]]
        window, _ = cut_window(torch.cat(past, dim=2), section)
        made = bind(transformer, batch.text.float(), window)(x, timestep)
        end = to_clean(x.double(), made.double(), sigma)
        error = (end - leg.states[:, -1].double()).square()
        return 0.5 * error.mean(dim=(1, 2, 3, 4)).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the trajectories, and the generators."""
        return {**position(self._data, self.noise), "choices": self._choices.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position."""
        go_to(state, self._data, self.noise)
        self._choices.set_state(state["choices"].cpu().clone())

    def measure(self, averaged: torch.nn.Module) -> dict[str, float]:
        """Nothing: there are no trajectories that training does not show."""
        return {}


def at_point(leg: Leg, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kept states, levels (float64) and timesteps of each sample at its ``point [B]``."""
    device = point.device
    states = leg.states[torch.arange(len(point), device=device), point].float()
    sigma = torch.tensor(leg.sigmas, dtype=torch.float64).to(device, non_blocking=True)
    timestep = torch.tensor(leg.timesteps).to(device, non_blocking=True)
    return states, sigma[point], timestep[point]
