import math

import numpy as np
import pytest
import torch
from diffusers import HeliosDMDScheduler, HeliosScheduler

from helios.diffusion import (
    Euler,
    Renoise,
    Schedule,
    ScheduleConfig,
    ShiftLaw,
    UniPC,
    flat_schedule,
    stage_schedule,
)

LAWS = [None, ShiftLaw(kind="exponential"), ShiftLaw(kind="linear")]
SHAPE = (2, 4, 3, 6, 5)


def randn(seed, dtype=torch.float32, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def flat(steps, law=None):
    return flat_schedule(steps, ScheduleConfig(stages=1, dynamic=law), 2160)


def run(solver, schedule, x, velocity):
    for k in range(len(schedule)):
        x = solver.step(k, velocity(x, schedule.sigmas[k].item()), x)
    return x


def of(kind, schedule, x):
    return Renoise(schedule, x) if kind is Renoise else kind(schedule)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", [Euler, UniPC])
def test_constant_velocity_is_integrated_exactly(kind, law, steps):
    schedule, x, v = flat(steps, law), randn(0, torch.float64), randn(1, torch.float64)
    found = run(of(kind, schedule, x), schedule, x, lambda *_: v)
    expected = x - schedule.sigmas[0] * v
    # Euler sums in float32, as published; the other keeps the dtype of the sample.
    atol = 2e-6 if kind is Euler else 1e-7
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", [Euler, UniPC, Renoise])
def test_velocity_towards_one_point_arrives_there(kind, law, steps):
    """A linear denoiser, ``v = (x - c) / sigma``: the perfect model of a single datum."""
    schedule, x, c = flat(steps, law), randn(0, torch.float64), randn(1, torch.float64)
    found = run(of(kind, schedule, x), schedule, x, lambda x, sigma: (x - c) / sigma)
    torch.testing.assert_close(found, c, rtol=0, atol=2e-6 if kind is Euler else 2e-7)


def test_euler_on_a_linear_field_is_its_product():
    schedule, x = flat(9), randn(0, torch.float64)
    found = run(Euler(schedule), schedule, x, lambda x, _: x.double())
    factor = math.prod((1 + step) for step in schedule.sigmas.diff().tolist())
    torch.testing.assert_close(found, factor * x, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1), (UniPC, 2)])
def test_order_of_convergence(kind, order):
    """``dx / d sigma = x`` has the solution ``x(b) = x(a) e^(b - a)``.

    Between 0.9 and 0.1, away from the end where half of all log-ratios lie in one step.
    """

    def error(steps):
        sigmas = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        schedule = Schedule(sigmas[:-1] * 1000, sigmas)
        x = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        found = run(kind(schedule), schedule, x, lambda x, _: x.double())
        return abs(found.item() - math.exp(-0.8))

    assert math.log2(error(160) / error(320)) > order - 0.1
    if kind is UniPC:
        assert error(160) < 1e-5


def test_renoise_returns_to_the_start_point():
    schedule, start, v = flat(3, LAWS[1]), randn(0, torch.float64), randn(1, torch.float64)
    s = schedule.sigmas.tolist()
    solver = Renoise(schedule, start)
    found = solver.step(0, v, start)
    expected = (1 - s[1]) * (start - s[0] * v) + s[1] * start
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(solver.step(2, v, start), start - s[2] * v, rtol=0, atol=1e-14)


def test_gradients_reach_the_velocity():
    schedule, x = flat(3), randn(0)
    v = randn(1).requires_grad_()
    for kind in (Euler, UniPC, Renoise):
        (grad,) = torch.autograd.grad(
            run(of(kind, schedule, x), schedule, x, lambda *_: v).sum(), v
        )
        assert grad.abs().min() > 0


def velocities(steps, dtype, shape=SHAPE):
    return [randn(100 + k, dtype, shape) for k in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["unipc", "euler"])
def test_flat_steps_equal_the_oracle(name, law, dtype, steps):
    config = ScheduleConfig(stages=1, dynamic=law)
    oracle = HeliosScheduler.from_config(config.to_json(name))
    first = np.linspace(0.999, 0.0, steps + 1)[:-1]
    oracle.set_timesteps(steps, sigmas=first, mu=law.mu(2160) if law else None)
    solver = (UniPC if name == "unipc" else Euler)(flat(steps, law))
    ours = theirs = randn(0)
    for k, v in enumerate(velocities(steps, dtype)):
        theirs = oracle.step(v, oracle.timesteps[k], theirs, return_dict=False)[0]
        ours = solver.step(k, v, ours)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), (k, (ours - theirs).abs().max())


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stage_steps_equal_the_oracle(stage, dtype, steps):
    config = ScheduleConfig(dynamic=ShiftLaw(kind="exponential"))
    oracle = HeliosScheduler.from_config(config.to_json())
    oracle.set_timesteps(steps, stage, mu=config.dynamic.mu(540))
    solver = UniPC(stage_schedule(steps, stage, config, 540))
    ours = theirs = randn(0)
    for k, v in enumerate(velocities(steps, dtype)):
        theirs = oracle.step(v, oracle.timesteps[k], theirs, return_dict=False)[0]
        ours = solver.step(k, v, ours)
        assert torch.equal(ours, theirs), (k, (ours - theirs).abs().max())


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("start_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("law", LAWS)
def test_few_steps_equal_the_oracle(law, stage, start_dtype, dtype, steps):
    config = ScheduleConfig(dynamic=law)
    oracle = HeliosDMDScheduler.from_config(config.to_json("renoise"))
    oracle.set_timesteps(steps, stage, mu=law.mu(540) if law else None)
    start = randn(0, start_dtype)
    solver = Renoise(stage_schedule(steps, stage, config, 540, renoise=True), start)
    ours = theirs = start
    for k, v in enumerate(velocities(steps, dtype)):
        theirs = oracle.step(
            v,
            oracle.timesteps[k],
            theirs,
            return_dict=False,
            cur_sampling_step=k,
            dmd_noisy_tensor=start,
            dmd_sigmas=oracle.sigmas,
            dmd_timesteps=oracle.timesteps,
            all_timesteps=oracle.timesteps,
        )[0]
        ours = solver.step(k, v, ours)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), (k, (ours - theirs).abs().max())
