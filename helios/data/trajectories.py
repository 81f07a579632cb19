"""A teacher's trajectories: whole videos, kept where a few-step student will stand.

The content depends on the settings alone, not on how many processes share the work (training
specification, 5.1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helios.data.batch import Leg, Trajectories
from helios.data.latents import ShardWriter
from helios.data.precompute import STORED, write_shards
from helios.diffusion import (
    CFG,
    Denoiser,
    Generators,
    Pyramid,
    SamplerState,
    ScheduleConfig,
    guide,
    stage_schedule,
    steps,
)
from helios.geometry import CHUNK_LATENTS, LATENT_CHANNELS, check_size, latent_size, token_count
from helios.history import History
from helios.model import bind

if TYPE_CHECKING:
    from helios.conditioning import TextEncoder
    from helios.distributed import World
    from helios.model import HeliosTransformer

__all__ = [
    "TRAJECTORIES",
    "Teacher",
    "TrajectoryConfig",
    "record_section",
    "write_trajectories",
]

TRAJECTORIES = "trajectories"
"""Kind of a folder of trajectories."""
SEEDS = 2**32
"""Captions of one seed; every caption has a generator of its own."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """How a teacher's videos are made and what is kept of them.

    Attributes:
        height, width: pixels.
        sections: of 33 frames in each video; later ones follow the teacher's own.
        steps: of the teacher in each stage, before the kept levels are merged in.
        points: levels that are kept of each stage of a later section, where a few-step sampler
            with so many steps stands; of the first section twice as many.
        guidance: scale; 1: none.
        negative_prompt: what guidance moves away from.
        seed: of the noise; each caption has its own.
        shard: captions in a file, made together.
    """

    height: int = 384
    width: int = 640
    sections: int = 5
    steps: tuple[int, ...] = (20, 20, 20)
    points: int = 2
    guidance: float = 5.0
    negative_prompt: str = ""
    seed: int = 0
    shard: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        check_size(self.height, self.width, len(self.steps))
        for name in ("sections", "points", "shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed must be from 0 to {SEEDS - 1}, got {self.seed}")
        if not self.guidance >= 0:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")

    def points_of(self, section: int) -> int:
        """Kept levels of each stage of ``section``: the first is amplified."""
        return self.points if section else 2 * self.points


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """Who makes the trajectories.

    Attributes:
        name: what to call it in the settings.
        transformer: a network trained on the pyramid.
        text: its text encoder.
        schedule: the noise levels that the student will visit.
    """

    name: str
    transformer: HeliosTransformer
    text: TextEncoder
    schedule: ScheduleConfig


def write_trajectories(
    teacher: Teacher,
    captions: Sequence[str],
    config: TrajectoryConfig,
    out: Path,
    world: World,
    say: Callable[[str], None],
) -> None:
    """Make the teacher's video of every caption and keep what a few-step student needs.

    Args:
        teacher: on the device of ``world``.
        captions: one video each.
        config: how.
        out: folder of shards; a run that was stopped goes on, one that is complete is left alone.
        world: this rank; ranks share the shards.
        say: called with a line for every shard that is made.

    Raises:
        DataError: if ``out`` holds something else.
        FloatingPointError: if the teacher gives values that are not finite.
    """
    values = asdict(config) | {"steps": list(config.steps)}
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    writer = ShardWriter(
        out,
        {
            "kind": TRAJECTORIES,
            "teacher": teacher.name,
            "captions": len(captions),
            "captions_sha256": digest,
            "schedule": teacher.schedule.to_json("renoise"),
            "levels": _levels(teacher.schedule, config),
            **values,
        },
    )

    def make(first: int, count: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        part = list(captions[first : first + count])
        made = _videos(teacher, part, range(first, first + count), config)
        tensors = {name: value.to("cpu", STORED) for name, value in made.tensors().items()}
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise FloatingPointError(
                f"{teacher.name} gave values that are not finite for captions {first} to "
                f"{first + count - 1}; try --dtype float32"
            )
        return tensors, {"captions": json.dumps(part)}

    write_shards(writer, len(captions), config.shard, make, world, say)


def _levels(
    schedule: ScheduleConfig, config: TrajectoryConfig
) -> list[list[dict[str, list[float]]]]:
    """Noise levels and timesteps of a few-step sampler in every stage of every section."""
    found = []
    for section in range(config.sections):
        legs = []
        for stage in range(schedule.stages):
            few = _few_steps(
                schedule, stage, config.points_of(section), config.height, config.width
            )
            legs.append({"sigmas": few[0], "timesteps": few[1]})
        found.append(legs)
    return found


def _few_steps(
    schedule: ScheduleConfig, stage: int, points: int, height: int, width: int
) -> tuple[list[float], list[float]]:
    rows, columns = latent_size(height, width)
    smaller = 2 ** (schedule.stages - 1 - stage)
    tokens = token_count(CHUNK_LATENTS, rows // smaller, columns // smaller)
    few = stage_schedule(points, stage, schedule, tokens, renoise=True)
    told: list[float] = few.timesteps.tolist()
    exact = schedule.fractional_timesteps
    return few.sigmas[:-1].tolist(), told if exact else [int(time) for time in told]


@torch.no_grad()
def _videos(
    teacher: Teacher, captions: Sequence[str], numbers: Sequence[int], config: TrajectoryConfig
) -> Trajectories:
    """The teacher's videos of ``captions``, which are ``numbers`` of the whole list."""
    device = teacher.transformer.device
    text = teacher.text.encode(captions).to(device)
    against = teacher.text.encode([config.negative_prompt]).to(device).expand_as(text)
    generators = [
        torch.Generator(device).manual_seed(config.seed * SEEDS + number) for number in numbers
    ]
    rows, columns = latent_size(config.height, config.width)
    history = History.empty(len(captions), LATENT_CHANNELS, rows, columns, device=device)
    shape = (1, LATENT_CHANNELS, CHUNK_LATENTS, rows, columns)
    sections = []
    for section in range(config.sections):
        window = history.window()
        denoiser = bind(teacher.transformer, text, window)
        if config.guidance > 1:
            other = bind(teacher.transformer, against, window)
            denoiser = guide(denoiser, other, CFG(config.guidance))
        noise = torch.cat([torch.randn(shape, generator=g, device=device) for g in generators])
        plan = Pyramid(steps=config.steps, visit=config.points_of(section))
        legs = record_section(denoiser, plan, noise, teacher.schedule, generators)
        sections.append(legs)
        # What a student will see as its past is what is stored.
        history = history.append(legs[-1].states[:, -1].to(STORED).float())
    return Trajectories(text=text, sections=tuple(sections))


def record_section(
    denoiser: Denoiser,
    plan: Pyramid,
    noise: Tensor,
    schedule: ScheduleConfig,
    generator: Generators = None,
) -> tuple[Leg, ...]:
    """One section by the teacher, and what it passed through on the way.

    Args:
        denoiser: closed over text and past.
        plan: ``visit`` says which levels are kept.
        noise: ``[B, C, 9, h, w]``.
        schedule: noise levels; the shift must be that of the current stage.
        generator: for the noise between stages.

    Returns:
        Of each stage the states before the kept levels and the one that it ends in.

    Raises:
        ValueError: if ``plan`` visits nothing, or ``schedule`` shifts one scale late.
    """
    if not plan.visit or schedule.lag:
        raise ValueError("trajectories need a plan that visits levels, and a consistent shift")
    stages: list[list[SamplerState]] = [[] for _ in range(schedule.stages)]
    for state in steps(denoiser, plan, noise, schedule, generator):
        stages[state.stage].append(state)
    return tuple(_leg(states, plan.visit, schedule) for states in stages)


def _leg(states: Sequence[SamplerState], points: int, schedule: ScheduleConfig) -> Leg:
    """The states of one stage at the levels of a few-step sampler, and the last one."""
    stage, x = states[0].stage, states[0].x
    tokens = token_count(*x.shape[-3:])
    few = stage_schedule(points, stage, schedule, tokens, renoise=True)
    sigmas: list[float] = few.sigmas[:-1].tolist()
    kept = [min(states[:-1], key=lambda state: abs(state.sigma - sigma)) for sigma in sigmas]
    if max(abs(s.sigma - sigma) for s, sigma in zip(kept, sigmas, strict=True)) > 1e-9:
        raise ValueError(f"the plan does not visit the {points} levels of stage {stage}")
    return Leg(
        states=torch.stack([*(state.x for state in kept), states[-1].x], dim=1),
        sigmas=tuple(sigmas),
        timesteps=tuple(state.timestep for state in kept),
    )
