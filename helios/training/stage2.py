"""Stage 2: flow matching on a pyramid of scales (training.md, 4).

The objective of stage 1 between other points. A chunk is made at a quarter, a half and the full
resolution; each scale has a start and an end of its own, mixed from the same noise, and a band of
timesteps of its own, so that the timestep alone tells the network where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helios.data import Batch
from helios.diffusion import (
    Pyramid,
    ScheduleConfig,
    draw_stage_point,
    mix,
    stage_endpoints,
    velocity,
)
from helios.distributed import World
from helios.geometry import check_size
from helios.model import (
    HeliosTransformer,
    PackedBlock,
    packed_block,
    packed_forward,
    recomputed,
)
from helios.training.flow_stage import FlowConfig, FlowStage
from helios.training.networks import parts_of

__all__ = ["Stage2", "Stage2Config", "StagePoint", "draw_points"]


class StagePoint(NamedTuple):
    """What the network is asked about one scale, and the right answer.

    Attributes:
        scale: 0 is the coarsest.
        x: ``[B, C, T, h, w]`` noisy latents at the resolution of the scale.
        timestep: ``[B]`` on the scale 0 to 1000, within the band of the scale.
        target: the velocity from the end of the scale to its start, as ``x``.
    """

    scale: int
    x: Tensor
    timestep: Tensor
    target: Tensor


def draw_points(
    clean: Tensor,
    noise: Tensor,
    scales: tuple[int, ...],
    schedule: ScheduleConfig,
    generator: torch.Generator,
) -> list[StagePoint]:
    """Points of training on every scale, coarsest first (training.md, 4.2).

    Args:
        clean: ``[B, C, T, h, w]`` float32 latents.
        noise: standard normal, the same shape; every scale sees it, the coarser ones averaged.
        scales: how many points of each scale, each at noise levels of its own.
        schedule: constants of the stages.
        generator: on the device of the latents.
    """
    points = []
    for scale, (start, end) in enumerate(stage_endpoints(clean, noise, schedule)):
        for _ in range(scales[scale]):
            sigma, timestep = draw_stage_point(
                len(clean), scale, schedule, generator=generator, device=clean.device
            )
            x, target = mix(end, start, sigma), velocity(end, start)
            points.append(StagePoint(scale, x, timestep, target))
    return points


@dataclass(frozen=True, kw_only=True)
class Stage2Config(FlowConfig):
    """How a transformer learns the pyramid.

    Attributes:
        scales: points of each scale per clip, coarsest first; ``schedule`` says how many scales.
        packed: all points in one sequence; otherwise one pass each, which gives the same.
        text_learns: off as it stands, so that the models of all later stages read the same text.
    """

    scales: tuple[int, ...] = (1, 1, 1)
    packed: bool = True
    text_learns: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        super().__post_init__()
        if len(self.scales) != self.schedule.stages or min(self.scales) < 1:
            raise ValueError(
                f"scales must be {self.schedule.stages} numbers of at least 1, got {self.scales}"
            )
        plan = self.generation.plan
        if not isinstance(plan, Pyramid) or len(plan.steps) != self.schedule.stages:
            raise ValueError(
                f"generation.plan must be a pyramid of {self.schedule.stages} scales, got {plan}"
            )
        check_size(self.data.height, self.data.width, self.schedule.stages)

    def build(self, world: World, *, seed: int, compiled: bool) -> Stage2:
        """The stage with fresh or given parameters.

        Raises:
            ValueError: if no codec is named.
            CheckpointError: if a folder does not hold what it should.
        """
        return Stage2(self, world, seed=seed, compiled=compiled)


class Stage2(FlowStage):
    """Learns the velocity of a section at every scale, given its past; see `FlowStage`."""

    config: Stage2Config
    _run_block: PackedBlock = staticmethod(packed_block)

    def __init__(self, config: Stage2Config, world: World, *, seed: int, compiled: bool) -> None:
        super().__init__(config, world, seed=seed, compiled=compiled)
        if config.recompute:
            self._run_block = recomputed(self._run_block)

    def _compile(self, transformer: HeliosTransformer) -> None:
        if self.config.packed:
            self._run_block = torch.compile(packed_block, dynamic=False)
        else:
            super()._compile(transformer)

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean over the points of their mean squared error: every scale counts the same."""
        each = self.losses(self.model, batch, self.noise)
        means = {name: value.mean() for name, value in each.items()}
        return means.pop("loss"), means

    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """The mean squared error of each sample, over all points and by scale."""
        config, transformer = self.config, parts_of(model)[0]
        example = self.example(batch, generator)
        clean = example.clean
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        points = draw_points(clean, noise, config.scales, config.schedule, generator)
        text = self.read(model, batch, generator)
        inputs, timesteps = [p.x for p in points], [p.timestep for p in points]
        if config.packed:
            made = packed_forward(
                transformer, inputs, timesteps, text, example.window, run_block=self._run_block
            )
        else:
            made = [transformer(x, t, text, example.window) for x, t in zip(inputs, timesteps)]
        errors = [
            (answer.float() - point.target).square().mean(dim=(1, 2, 3, 4))
            for answer, point in zip(made, points)
        ]
        by_scale = {
            f"loss_scale_{scale}": _mean([e for e, p in zip(errors, points) if p.scale == scale])
            for scale in range(len(config.scales))
        }
        return {"loss": _mean(errors), **by_scale}


def _mean(errors: Sequence[Tensor]) -> Tensor:
    """Of several errors of each sample, ``[B]``."""
    return torch.stack(tuple(errors)).mean(dim=0)
