"""Staged backward simulation: the student's own chunk, with gradients on the steps that learn.

The loop is the sampler's. Each stage is left after a random number of steps, so that the student
learns to be right after any of them, and only the last step of each stage keeps its gradient
(training specification, 6.4).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from helios.diffusion import Denoiser, Generators, Pyramid, ScheduleConfig, steps

__all__ = ["draw_exits", "simulate"]


def draw_exits(plan: Pyramid, generator: torch.Generator) -> tuple[int, ...]:
    """After how many steps each stage is left, uniform from 1 to all of them.

    Args:
        plan: the few-step plan.
        generator: on the CPU, in the same state on every rank, so that no rank waits for another.
    """
    return tuple(int(torch.randint(1, n + 1, (), generator=generator)) for n in plan.lengths)


def simulate(
    denoiser: Denoiser,
    plan: Pyramid,
    noise: Tensor,
    schedule: ScheduleConfig,
    generator: Generators = None,
    *,
    exits: tuple[int, ...] | None = None,
) -> Tensor:
    """The clean chunk that the student makes, ``[B, C, 9, h, w]``.

    Where gradients are on, one step of each stage has one: the last. Stages are joined by the
    transition, which is part of the graph, so a gradient reaches the stage before wherever a stage
    is left after its first step.

    Args:
        denoiser: the student, closed over text and past.
        plan: the few-step rule.
        noise: standard normal at full resolution.
        schedule: the student's noise levels.
        generator: for the noise between stages.
        exits: steps after which each stage is left; none: all, which is what a sampler does.
    """
    learns = torch.is_grad_enabled()
    exits = plan.lengths if exits is None else exits
    loop = steps(denoiser, replace(plan, exits=exits), noise, schedule, generator)
    state = next(loop)
    while not state.done:
        # The state before the last step of its stage, or the stage's end, from which the loop
        # enters the next one.
        last = state.step + 1 >= exits[state.stage]
        if learns and last:
            # Autocast remembers casts of weights; those made without gradients have none to give.
            torch.clear_autocast_cache()
        with torch.set_grad_enabled(learns and last):
            state = next(loop)
    return state.x
