"""The pyramid sampler on data whose best velocity is known in closed form: Gaussian fields.

Stage points are linear in clean field and noise, so the velocity a perfect model would answer is a
matrix (specification "training", 4.2). What the sampler then gets wrong is its own doing.
``python tests/diffusion/test_gaussian.py`` prints the table of ``docs/decisions/0006-shift.md``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from helios.diffusion import (
    Pyramid,
    ScheduleConfig,
    ShiftLaw,
    downsample,
    sample,
    stage_table,
    upsample,
)

SIZE = 16
# The published law on a grid of 64 tokens instead of 8640: the three scales get the same shifts.
LINEAR, EXPONENTIAL = (
    ShiftLaw(kind=kind, base_tokens=2, max_tokens=30) for kind in ("linear", "exponential")
)


@lru_cache
def covariance() -> Tensor:
    """Of a field with a falling spectrum and unit variance, ``[256, 256]``."""
    axis = torch.fft.fftfreq(SIZE, dtype=torch.float64) * SIZE
    spectrum = 1 / (1 + (axis[:, None].square() + axis.square()).sqrt() / 1.5) ** 3
    row = torch.fft.ifft2(spectrum / spectrum.mean()).real
    shifted = [row.roll((i, j), (0, 1)).flatten() for i in range(SIZE) for j in range(SIZE)]
    return torch.stack(shifted)


def matrix(resize, size: int) -> Tensor:
    """A resizing of ``size`` x ``size`` fields as a matrix that multiplies from the left."""
    basis = torch.eye(size * size, dtype=torch.float64).view(-1, 1, 1, size, size)
    return resize(basis).flatten(1).T


@lru_cache(maxsize=512)
def answer(stage: int, timestep: int, config: ScheduleConfig) -> Tensor:
    """The matrix from a sample to the expected velocity."""
    table, size = stage_table(config)[stage], SIZE >> (config.stages - 1 - stage)
    clean = covariance()
    for level in range(SIZE.bit_length() - size.bit_length()):
        half = matrix(downsample, SIZE >> level)
        clean = half @ clean @ half.T
    total = config.num_train_timesteps
    width = (table.timestep_max - table.timestep_min) * total / (total - 1)
    s = max(0.0, 0.999 * (1 - (table.timestep_max - timestep) / width))
    identity = torch.eye(size * size, dtype=torch.float64)
    begin, end = (1.0 if stage == 0 else table.start), table.end
    coarse = matrix(upsample, size // 2) @ matrix(downsample, size) if stage else identity
    noise_x, noise_v = s * begin + (1 - s) * end, begin - end
    clean_x = s * (1 - begin) * coarse + (1 - s) * (1 - end) * identity
    clean_v = (1 - begin) * coarse - (1 - end) * identity
    of_x = noise_x**2 * identity + clean_x @ clean @ clean_x.T
    with_v = noise_x * noise_v * identity + clean_v @ clean @ clean_x.T
    return torch.linalg.solve(of_x, with_v.T).T


def made(plan: Pyramid, config: ScheduleConfig, count: int = 1000) -> Tensor:
    """Fields that the sampler makes with the perfect answers, ``[count, 256]``."""

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        stage = {SIZE // 4: 0, SIZE // 2: 1, SIZE: 2}[x.shape[-1]]
        return (x.flatten(1) @ answer(stage, int(timestep[0]), config).T).view(x.shape)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return sample(denoise, plan, noise, config, generator).flatten(1)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values.clamp_min(0).sqrt()[:, None] * vectors.T)


def distance(fields: Tensor) -> float:
    """Wasserstein distance of the fields to the data, as a share of the data's deviation."""
    found, data = fields.T @ fields / len(fields), root(covariance())
    square = found.trace() + SIZE**2 - 2 * root(data @ found @ data).trace()
    return float(square.clamp_min(0).sqrt() / SIZE)


def floor(count: int) -> float:
    """The distance of as many true fields: what counting alone costs."""
    normal = torch.randn(count, SIZE**2, generator=torch.Generator().manual_seed(1)).double()
    return distance(normal @ root(covariance()))


@pytest.mark.parametrize("solver", ["unipc", "euler"])
@pytest.mark.parametrize("lag", [False, True])
def test_many_steps_make_the_data(lag: bool, solver: str) -> None:
    config = ScheduleConfig(dynamic=EXPONENTIAL, lag=lag)
    few, many = (distance(made(Pyramid(steps=(n,) * 3, solver=solver), config)) for n in (2, 30))
    assert many < floor(1000) + 0.05
    assert few > floor(1000) + 0.2


def main(count: int = 20000) -> None:
    print("| solver | law | steps per scale | published | consistent |")
    print("|---|---|---|---|---|")
    for solver, law in (("renoise", LINEAR), ("unipc", EXPONENTIAL)):
        for steps in (1, 2, 4) if solver == "renoise" else (3, 5, 10, 20):
            plan = Pyramid(steps=(steps,) * 3, solver=solver)
            config = ScheduleConfig(dynamic=law, lag=True)
            cells = [
                f"{distance(made(plan, replace(config, lag=lag), count)):.3f}"
                for lag in (True, False)
            ]
            print(f"| {solver} | {law.kind} | {steps} | {' | '.join(cells)} |")
    print(f"| true fields, as many | | | {floor(count):.3f} | |")


if __name__ == "__main__":
    main()
