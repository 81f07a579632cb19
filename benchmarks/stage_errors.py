"""Each stage of a few-step pyramid by ours and by diffusers, in bfloat16 and in float32.

Both run on the same tensors in memory and are given the same start, text and history, so what is
left is what each computes: the error of one forward pass and of the two steps of a stage.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios.diffusion import (
    Renoise,
    ScheduleConfig,
    ShiftLaw,
    downsample_noise,
    enter_stage,
    stage_schedule,
)
from helios.geometry import CHUNK_LATENTS, LATENT_CHANNELS, latent_size
from helios.history import (
    CHUNK_POSITIONS,
    LONG_POSITIONS,
    MID_POSITIONS,
    SHORT_POSITIONS,
    HistoryWindow,
)
from helios.model import HeliosTransformer, cast, load_transformer

SEED = 8
STEPS = (2, 2, 2)
SCHEDULE = ScheduleConfig(dynamic=ShiftLaw(kind="linear"), lag=True)
"""That of Helios-Distilled."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What both are given; every number is one of bfloat16, so neither loses any at the door."""

    text: Tensor
    window: HistoryWindow
    noise: Tensor

    @classmethod
    def draw(cls, text: Tensor, height: int, width: int, device: torch.device) -> Given:
        """Noise and a full history for this size, and ``text`` ``[L, D]``."""
        generator = torch.Generator().manual_seed(SEED)
        rows, columns = latent_size(height, width)

        def normal(frames: int) -> Tensor:
            shape = (1, LATENT_CHANNELS, frames, rows, columns)
            return rounded(torch.randn(shape, generator=generator).to(device))

        past = normal(max(SHORT_POSITIONS) + 1)
        present = torch.ones(past.shape[0], past.shape[2], dtype=torch.bool, device=device)
        return cls(
            text=rounded(text[None].to(device)),
            window=HistoryWindow(past, present),
            noise=normal(CHUNK_LATENTS),
        )


def rounded(x: Tensor) -> Tensor:
    """Float32 numbers that bfloat16 can hold."""
    return x.bfloat16().float()


def tokens(x: Tensor) -> int:
    return x.shape[2] * x.shape[3] * x.shape[4] // 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The start of one stage, and the tokens that the published shift counts there."""

    index: int
    start: Tensor
    counted: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one network made of a stage: its first velocity, and the sample at the end."""

    velocity: Tensor
    end: Tensor


@torch.no_grad()
def ours(model: HeliosTransformer, given: Given, stage: Stage) -> Outcome:
    schedule = stage_schedule(
        STEPS[stage.index], stage.index, SCHEDULE, stage.counted, renoise=True
    )
    solver = Renoise(schedule, stage.start)
    x, velocities = stage.start, []
    for k, told in enumerate(schedule.timesteps.tolist()):
        timestep = torch.tensor([int(told)], device=x.device)
        velocities.append(model(x, timestep, given.text, given.window).float())
        x = solver.step(k, velocities[-1], x)
    return Outcome(velocity=velocities[0], end=x.float())


@torch.no_grad()
def theirs(model: Any, scheduler: Any, given: Given, stage: Stage) -> Outcome:
    """The stage as HeliosPyramidPipeline runs it."""
    dtype, device = model.proj_out.weight.dtype, stage.start.device
    history = {
        f"latents_history_{name}": part.to(dtype)
        for name, part in (
            ("short", given.window.short),
            ("mid", given.window.mid),
            ("long", given.window.long),
        )
    }
    positions = {
        "indices_hidden_states": CHUNK_POSITIONS,
        "indices_latents_history_short": SHORT_POSITIONS,
        "indices_latents_history_mid": MID_POSITIONS,
        "indices_latents_history_long": LONG_POSITIONS,
    }
    indices = {name: torch.tensor([values]) for name, values in positions.items()}
    scheduler.set_timesteps(
        STEPS[stage.index],
        stage.index,
        device=device,
        mu=ShiftLaw(kind="linear").mu(stage.counted),
    )
    # Only the coarsest stage starts in float32 there.
    start = stage.start if stage.index == 0 else stage.start.to(dtype)
    x, velocities = start, []
    for k, told in enumerate(scheduler.timesteps):
        velocity = model(
            hidden_states=x.to(dtype),
            timestep=told.expand(1).to(torch.int64),
            encoder_hidden_states=given.text.to(dtype),
            return_dict=False,
            **history,
            **indices,
        )[0]
        velocities.append(velocity)
        x = scheduler.step(
            velocity,
            told,
            x,
            return_dict=False,
            cur_sampling_step=k,
            dmd_noisy_tensor=start,
            dmd_sigmas=scheduler.sigmas,
            dmd_timesteps=scheduler.timesteps,
            all_timesteps=scheduler.timesteps,
        )[0]
    return Outcome(velocity=velocities[0].float(), end=x.float())


def compare(
    folder: Path, text: Tensor, height: int, width: int, device: torch.device
) -> list[dict[str, Any]]:
    """Every stage in both dtypes by both networks, which take turns on one set of tensors."""
    from diffusers import HeliosDMDScheduler
    from diffusers_arms import shared_transformer

    # Products of float32 in float32, in the oracle's convolutions too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    scheduler = HeliosDMDScheduler.from_pretrained(folder / "scheduler")
    given = Given.draw(text, height, width, device)
    model = load_transformer(folder / "transformer", device=device, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(SEED)
    found: dict[str, list[Outcome]] = {}
    stages: list[Stage] = []
    found["ours bfloat16"] = []
    x = given.noise
    for _ in STEPS[1:]:
        x = rounded(downsample_noise(x))
    for index in range(len(STEPS)):
        counted = tokens(x)
        if index:
            x = rounded(enter_stage(x, index, SCHEDULE, generator))
        stages.append(Stage(index=index, start=x, counted=counted))
        found["ours bfloat16"].append(ours(model, given, stages[-1]))
        x = found["ours bfloat16"][-1].end
    for dtype in ("bfloat16", "float32"):
        if dtype == "float32":
            cast(model, torch.float32)
            found["ours float32"] = [ours(model, given, stage) for stage in stages]
            print("ours in float32: done", flush=True)
        network = shared_transformer(model)
        found[f"diffusers {dtype}"] = [theirs(network, scheduler, given, s) for s in stages]
        print(f"diffusers in {dtype}: done", flush=True)
        del network
        gc.collect()
    return [distances(found, stage) for stage in stages]


def distances(found: dict[str, list[Outcome]], stage: Stage) -> dict[str, Any]:
    """Root-mean-square distances to diffusers in float32, in units of its own size."""
    reference = found["diffusers float32"][stage.index]
    result: dict[str, Any] = {"stage": stage.index, "size": list(stage.start.shape[-2:])}
    for what in ("velocity", "end"):
        aim: Tensor = getattr(reference, what)
        unit = aim.square().mean().sqrt()
        far = {}
        for name, outcomes in found.items():
            gap: Tensor = getattr(outcomes[stage.index], what) - aim
            far[name] = (gap.square().mean().sqrt() / unit).item()
            if name == "ours float32":
                far["float32, largest"] = (gap.abs().max() / aim.abs().max().clamp_min(1)).item()
        del far["diffusers float32"]
        far["ratio"] = far["ours bfloat16"] / far["diffusers bfloat16"]
        result[what] = far
    return result
