"""The loop from noise to clean latents, over any callable that returns a velocity.

It holds no weights and sets no gradient mode: the pipeline drains it without gradients, training
keeps them on the step it trains, a recorder writes down what it yields (specification "model and
sampling", sections 6 and 7.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from helios.diffusion.guidance import Denoiser
from helios.diffusion.pyramid import Generators, downsample_noise, enter_stage
from helios.diffusion.schedule import (
    Schedule,
    ScheduleConfig,
    SolverName,
    flat_schedule,
    stage_schedule,
)
from helios.diffusion.solvers import Euler, Renoise, Solver, UniPC

__all__ = ["Flat", "Plan", "Pyramid", "SamplerState", "sample", "steps"]


@dataclass(frozen=True, kw_only=True)
class Flat:
    """All steps at full resolution.

    Attributes:
        steps: evaluations of the denoiser.
        solver: ``"unipc"`` (published) or ``"euler"``.
    """

    steps: int = 50
    solver: Literal["unipc", "euler"] = "unipc"

    def __post_init__(self) -> None:
        """Refuse an empty plan."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.solver not in ("unipc", "euler"):
            raise ValueError(f"solver must be 'unipc' or 'euler', got {self.solver!r}")


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Steps at growing resolutions, coarsest first.

    Attributes:
        steps: evaluations of the denoiser per stage.
        solver: ``"unipc"``, ``"euler"`` or the few-step rule ``"renoise"``.
        zero_init: this many first steps of stage 0 use a velocity of zero; the denoiser is not
            called for them (6.7).
        amplify: twice the steps in every stage, for the first chunk of a video (6.8).
        visit: also visit the levels at which a few-step plan with this many steps would stand, so
            that a recorder finds them there ("training", 5.1); 0: none.
        exits: leave each stage after this many steps, with the few-step rule's prediction of its
            end; none: after all of them ("training", 6.4).
    """

    steps: tuple[int, ...] = (20, 20, 20)
    solver: SolverName = "unipc"
    zero_init: int = 0
    amplify: bool = False
    visit: int = 0
    exits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse mixtures without a meaning."""
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps must be at least 1 in every stage, got {self.steps}")
        if self.solver not in get_args(SolverName):
            raise ValueError(f"solver must be one of {get_args(SolverName)}, got {self.solver!r}")
        if self.zero_init < 0:
            raise ValueError(f"zero_init must be at least 0, got {self.zero_init}")
        if self.amplify and self.solver != "renoise":
            raise ValueError("amplify belongs to the few-step rule: solver must be 'renoise'")
        if self.visit < 0 or (self.visit and self.solver == "renoise"):
            raise ValueError("visit must be at least 0 and belongs to the other solvers")
        if self.exits is not None:
            self._check_exits(self.exits)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps that each stage has, amplification included and exits not."""
        return tuple(2 * count if self.amplify else count for count in self.steps)

    def _check_exits(self, exits: tuple[int, ...]) -> None:
        if self.solver != "renoise":
            raise ValueError("exits belong to the few-step rule: solver must be 'renoise'")
        within = len(exits) == len(self.steps)
        if not within or any(not 1 <= e <= n for e, n in zip(exits, self.lengths, strict=True)):
            raise ValueError(f"exits must be from 1 to {self.lengths}, got {exits}")


Plan: TypeAlias = Flat | Pyramid


@dataclass(frozen=True, eq=False)
class SamplerState:
    """The loop at one moment: before a step, or at the end of a stage.

    Attributes:
        x: the sample ``[B, C, T, h, w]`` at the resolution of its stage.
        stage: 0 is the coarsest; always 0 in a flat plan.
        step: steps already taken in this stage.
        sigma: local noise level of ``x``; 0 at the end of a stage.
        timestep: what the network is told (in a pyramid a whole number, unless the configuration
            wants fractions).
        done: ``True`` for the last state only; its ``x`` is the clean chunk.
    """

    x: Tensor
    stage: int
    step: int
    sigma: float
    timestep: float
    done: bool


def sample(
    denoiser: Denoiser,
    plan: Plan,
    noise: Tensor,
    config: ScheduleConfig,
    generator: Generators = None,
    rounding: torch.dtype | None = None,
) -> Tensor:
    """Clean latents: the last state of ``steps``."""
    x = noise
    for state in steps(denoiser, plan, noise, config, generator, rounding):
        x = state.x
    return x


def steps(
    denoiser: Denoiser,
    plan: Plan,
    noise: Tensor,
    config: ScheduleConfig,
    generator: Generators = None,
    rounding: torch.dtype | None = None,
) -> Iterator[SamplerState]:
    """Yield every state of the loop: before each step, and after the last step of each stage.

    Advancing past a state calls the denoiser for it, so the caller may choose the gradient mode
    of each step.

    Args:
        denoiser: closed over text and history. It is told one timestep per sample, float32 in a
            flat plan and int64 in a pyramid without fractional timesteps.
        plan: how many steps, at which resolutions, by which solver.
        noise: standard normal ``[B, C, T, h, w]``, float32, at full resolution.
        config: noise levels of the checkpoint.
        generator: for the noise between stages; a flat plan draws nothing.
        rounding: the dtype of the model, to round velocities, block noise and with them the sample
            where the released pipelines do (6.4 to 6.6); none: the sample keeps the precision of
            ``noise`` from the first step to the last, whatever the model computes in.

    Raises:
        ValueError: if the plan does not fit the configuration or the size of ``noise``.
    """
    dtype = rounding or noise.dtype

    def answer(x: Tensor, timestep: Tensor) -> Tensor:
        return denoiser(x, timestep).to(dtype)

    if isinstance(plan, Flat):
        return _flat(answer, plan, noise, config)
    _check_pyramid(plan, noise, config)
    return _pyramid(answer, plan, noise, config, generator, dtype)


def _tokens(x: Tensor) -> int:
    frames, rows, columns = x.shape[-3:]
    return frames * rows * columns // 4


def _solver(name: SolverName, schedule: Schedule, x: Tensor) -> Solver:
    if name == "euler":
        return Euler(schedule)
    return UniPC(schedule) if name == "unipc" else Renoise(schedule, x)


def _flat(
    denoiser: Denoiser, plan: Flat, noise: Tensor, config: ScheduleConfig
) -> Iterator[SamplerState]:
    schedule = flat_schedule(plan.steps, config, _tokens(noise))
    solver = _solver(plan.solver, schedule, noise)
    times: list[float] = schedule.timesteps.tolist()
    sigmas: list[float] = schedule.sigmas.tolist()
    x = noise
    for k, time in enumerate(times):
        yield SamplerState(x, 0, k, sigmas[k], time, done=False)
        told = torch.full((x.shape[0],), time, dtype=torch.float32, device=x.device)
        x = solver.step(k, denoiser(x, told), x)
    yield SamplerState(x, 0, plan.steps, 0.0, 0.0, done=True)


def _check_pyramid(plan: Pyramid, noise: Tensor, config: ScheduleConfig) -> None:
    if len(plan.steps) != config.stages:
        raise ValueError(f"steps must have {config.stages} numbers, got {plan.steps}")
    rows, columns = noise.shape[-2:]
    multiple = 2**config.stages  # the coarsest grid must still hold whole 2 x 2 patches
    if rows % multiple or columns % multiple:
        raise ValueError(
            f"latents of {rows}x{columns} cannot be halved {config.stages - 1} times: "
            f"rows and columns must be multiples of {multiple}"
        )


def _pyramid(
    denoiser: Denoiser,
    plan: Pyramid,
    noise: Tensor,
    config: ScheduleConfig,
    generator: Generators,
    dtype: torch.dtype,
) -> Iterator[SamplerState]:
    x = noise
    for _ in range(config.stages - 1):
        x = downsample_noise(x)
    for stage, count in enumerate(plan.lengths):
        tokens = _tokens(x)
        if stage > 0:
            x = enter_stage(x, stage, config, generator, dtype)
        schedule = stage_schedule(
            count,
            stage,
            config,
            tokens if config.lag else _tokens(x),
            renoise=plan.solver == "renoise",
            visit=plan.visit,
        )
        if plan.exits is not None:
            schedule = schedule.cut(plan.exits[stage])
        solver = _solver(plan.solver, schedule, x)
        exact = config.fractional_timesteps
        told_as = torch.float32 if exact else torch.int64
        times = [time if exact else int(time) for time in schedule.timesteps.tolist()]
        sigmas: list[float] = schedule.sigmas.tolist()
        for k, time in enumerate(times):
            yield SamplerState(x, stage, k, sigmas[k], time, done=False)
            if stage == 0 and k < plan.zero_init:
                velocity = torch.zeros_like(x, dtype=dtype)
            else:
                told = torch.full((x.shape[0],), time, dtype=told_as, device=x.device)
                velocity = denoiser(x, told)
            x = solver.step(k, velocity, x)
        last = stage == config.stages - 1
        ended = schedule.last_timestep if exact else int(schedule.last_timestep)
        yield SamplerState(x, stage, len(times), 0.0, ended, done=last)
