"""The mathematics of diffusion: paths, schedules, solvers, guidance and the sampling loop.

It knows no network, only callables from ``(x, timestep)`` to a velocity.
"""

from helios.diffusion.flow import mix, to_clean, to_noise, velocity
from helios.diffusion.guidance import CFG, CFGZero, Denoiser, Guidance, combine, guide
from helios.diffusion.pyramid import (
    Endpoints,
    Generators,
    block_noise,
    downsample,
    downsample_noise,
    draw_stage_point,
    enter_stage,
    stage_endpoints,
    transition,
    upsample,
)
from helios.diffusion.sampler import Flat, Plan, Pyramid, SamplerState, sample, steps
from helios.diffusion.schedule import (
    Schedule,
    ScheduleConfig,
    ShiftKind,
    ShiftLaw,
    SolverName,
    Stage,
    draw_sigma,
    flat_schedule,
    solver_from_json,
    stage_schedule,
    stage_table,
)
from helios.diffusion.solvers import Euler, Renoise, Solver, UniPC

__all__ = [
    "CFG",
    "CFGZero",
    "Denoiser",
    "Endpoints",
    "Euler",
    "Flat",
    "Generators",
    "Guidance",
    "Plan",
    "Pyramid",
    "Renoise",
    "SamplerState",
    "Schedule",
    "ScheduleConfig",
    "ShiftKind",
    "ShiftLaw",
    "Solver",
    "SolverName",
    "Stage",
    "UniPC",
    "block_noise",
    "combine",
    "downsample",
    "downsample_noise",
    "draw_sigma",
    "draw_stage_point",
    "enter_stage",
    "flat_schedule",
    "guide",
    "mix",
    "sample",
    "solver_from_json",
    "stage_endpoints",
    "stage_schedule",
    "stage_table",
    "steps",
    "to_clean",
    "to_noise",
    "transition",
    "upsample",
    "velocity",
]
