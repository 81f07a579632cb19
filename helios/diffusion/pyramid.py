"""Between the scales: resizing latents and noise, and entering the next stage.

Three stages at a quarter, half and full resolution. Going up doubles every cell, which correlates
the noise of a 2 x 2 block; block noise correlated the other way restores what the next stage was
trained on (specification "model and sampling", 6.6; "training", 4.2, 4.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from helios.diffusion.flow import mix
from helios.diffusion.schedule import FIRST_SIGMA, ScheduleConfig, stage_table

__all__ = [
    "Endpoints",
    "Generators",
    "block_noise",
    "downsample",
    "downsample_noise",
    "draw_stage_point",
    "enter_stage",
    "stage_endpoints",
    "transition",
    "upsample",
]

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""One generator for the batch, or one per sample."""

BLOCK = 4
"""Cells of a 2 x 2 block."""
LAST_PIVOT = 1.5 * 2**-23
"""One and a half roundings of 1 in float32: its root, 4.2e-4, is the last entry published."""


def downsample(x: Tensor) -> Tensor:
    """Clean latents ``[B, C, T, h, w]`` at half size: bilinear, the mean of each 2 x 2 block."""
    rows, columns = x.shape[-2:]
    if rows % 2 or columns % 2:
        raise ValueError(f"rows and columns must be even to be halved, got {rows}x{columns}")
    # Frames join the batch, as in the published code: the order in which the four are added depends
    # on the layout that the interpolation sees.
    maps = x.transpose(1, 2).flatten(0, 1)
    half = F.interpolate(maps, size=(rows // 2, columns // 2), mode="bilinear")
    return half.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2).contiguous()


def downsample_noise(noise: Tensor) -> Tensor:
    """Noise at half size; twice the mean of four, so that the variance stays 1."""
    return downsample(noise) * 2


def upsample(x: Tensor) -> Tensor:
    """Latents ``[B, C, T, h, w]`` at twice the size, each cell repeated."""
    large = F.interpolate(x.flatten(0, 1), scale_factor=2, mode="nearest")
    return large.unflatten(0, x.shape[:2])


@lru_cache(maxsize=8)
def _block_factor(gamma: float) -> Tensor:
    """Cholesky factor ``[4, 4]`` of the covariance of a block, float32 on the CPU.

    The covariance has 1 on the diagonal and ``-gamma`` off it. At 1/3 it is singular, and a float32
    factorisation succeeds or fails by the rounding of the machine; so it is done here in float64,
    with the last pivot kept at what float32 leaves where the published code succeeds.
    """
    factor = torch.zeros(BLOCK, BLOCK, dtype=torch.float64)
    for column in range(BLOCK):
        done = factor[:, :column]
        rest = torch.where(torch.arange(BLOCK) == column, 1.0, -gamma) - done @ done[column]
        pivot = rest[column].clamp_min(LAST_PIVOT)
        factor[column:, column] = rest[column:] / pivot.sqrt()
        factor[column, column] = pivot.sqrt()
    return factor.float()


def _normal(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Draw where the generator lives, so that a seed means the same numbers on every device."""
    source = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=source).to(device)


def block_noise(
    shape: Sequence[int],
    gamma: float,
    generator: Generators = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Normal noise of unit variance whose 2 x 2 blocks have covariance ``-gamma`` between cells.

    Args:
        shape: ``[B, C, T, h, w]`` with even h and w.
        gamma: 1/3 makes the four cells of a block sum to zero (almost: std 4e-4).
        generator: one for the batch, drawn as one matrix ``[blocks, 4]`` in the published order
            (sample, channel, frame, block row, block column; columns are the cells of the block),
            or one per sample.
        device: where the result lives.

    Raises:
        ValueError: if h or w is odd, or the number of generators is not B.
    """
    batch, channels, frames, rows, columns = shape
    if rows % 2 or columns % 2:
        raise ValueError(f"rows and columns must be even, got {rows}x{columns}")
    device = torch.device(device)
    blocks = channels * frames * (rows // 2) * (columns // 2)
    if generator is None or isinstance(generator, torch.Generator):
        drawn = _normal((batch * blocks, BLOCK), generator, device)
    elif len(generator) == batch:
        drawn = torch.cat([_normal((blocks, BLOCK), one, device) for one in generator])
    else:
        raise ValueError(f"{batch} samples need one generator or {batch}, got {len(generator)}")
    noise = drawn @ _block_factor(gamma).to(device, non_blocking=True).T
    noise = noise.view(batch, channels, frames, rows // 2, columns // 2, 2, 2)
    return noise.transpose(4, 5).reshape(batch, channels, frames, rows, columns)


def transition(config: ScheduleConfig, stage: int) -> tuple[float, float]:
    """``(alpha, beta)``: entering ``stage`` is ``alpha * upsampled + beta * block noise`` (6.6)."""
    if not 0 < stage < config.stages:
        raise ValueError(f"only stages 1 to {config.stages - 1} are entered, got {stage}")
    signal = 1 - stage_table(config)[stage].original
    alpha = 1 / (math.sqrt(1 + 1 / config.gamma) * (1 - signal) + signal)
    return alpha, alpha * (1 - signal) / math.sqrt(config.gamma)


def enter_stage(
    x: Tensor,
    stage: int,
    config: ScheduleConfig,
    generator: Generators = None,
    noise_dtype: torch.dtype | None = None,
) -> Tensor:
    """The start of ``stage`` from the end ``x`` of the stage before, at twice its size.

    ``noise_dtype`` is the model's: the published pipelines round the noise to it before the sum.
    """
    alpha, beta = transition(config, stage)
    large = upsample(x)
    noise = block_noise(large.shape, config.gamma, generator, x.device)
    return alpha * large + beta * noise.to(noise_dtype or x.dtype)


class Endpoints(NamedTuple):
    """Start (noisier) and end (cleaner) of one stage, ``[B, C, T, h, w]`` at its resolution."""

    start: Tensor
    end: Tensor


def stage_endpoints(clean: Tensor, noise: Tensor, config: ScheduleConfig) -> list[Endpoints]:
    """Both ends of every stage for training, coarsest first (training specification, 4.2).

    Args:
        clean: latents at full resolution.
        noise: standard normal, same shape; the coarser stages see it averaged, not drawn anew.
        config: stage constants.
    """
    levels = [(clean, noise)]
    for _ in range(config.stages - 1):
        finer, finer_noise = levels[0]
        levels.insert(0, (downsample(finer), downsample_noise(finer_noise)))
    result: list[Endpoints] = []
    for stage, constants in enumerate(stage_table(config)):
        latents, own_noise = levels[stage]
        if stage == 0:
            # The published path begins at pure noise, one grid step above its level of 0.999.
            start = own_noise
        else:
            start = mix(upsample(levels[stage - 1][0]), own_noise, constants.start)
        result.append(Endpoints(start, mix(latents, own_noise, constants.end)))
    return result


def draw_stage_point(
    n: int,
    stage: int,
    config: ScheduleConfig,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Local noise levels and their timesteps for training within one stage, both ``[n]`` float32.

    Uniform over the stage's grid of ``num_train_timesteps`` points (training specification, 4.2).
    """
    total = config.num_train_timesteps
    band = stage_table(config)[stage]
    index = torch.randint(total, (n,), generator=generator, device=device)
    remaining = 1 - index.double() / total
    # Both grids are straight lines over the index; the band's own minimum is its last grid point.
    width = (band.timestep_max - band.timestep_min) * total / (total - 1)
    timestep = band.timestep_max - width * (1 - remaining)
    return (FIRST_SIGMA * remaining).float(), timestep.float()
