import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import HeliosDMDScheduler, HeliosScheduler

from helios.diffusion import (
    CFGZero,
    Flat,
    Pyramid,
    ScheduleConfig,
    ShiftLaw,
    block_noise,
    downsample,
    guide,
    sample,
    stage_table,
    steps,
    upsample,
)

EXPONENTIAL, LINEAR = ShiftLaw(kind="exponential"), ShiftLaw(kind="linear")
SHAPE = (2, 4, 9, 8, 16)
PLANS = [
    Flat(steps=1),
    Flat(steps=6),
    Flat(steps=4, solver="euler"),
    Pyramid(steps=(3, 2, 2)),
    Pyramid(steps=(2, 3, 1), solver="euler"),
    Pyramid(steps=(2, 2, 2), solver="renoise"),
    Pyramid(steps=(1, 1, 1), solver="renoise", amplify=True),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(seed, shape=SHAPE):
    return torch.randn(shape, generator=generator(seed))


def network(dtype=torch.float32):
    """A smooth field that depends on place, time and value, in the dtype of a model."""

    def denoise(x, timestep):
        x = x.to(dtype).contiguous()  # the sine rounds differently on strided memory
        wave = torch.linspace(0, 3, x.shape[-1], dtype=dtype)
        time = (timestep.view(-1, 1, 1, 1, 1).float() / 1000).to(dtype)
        return torch.sin(x * 1.3 + wave) * (1 - time) + x * time

    return denoise


def perfect(clean, plan, config, state):
    """The analytic velocity of a data set of one, at the true level of the current state.

    In a stage the noise follows from the sample; with it both ends of the stage are known.
    """
    levels = [clean]
    if isinstance(plan, Pyramid):
        for _ in range(config.stages - 1):
            levels.insert(0, downsample(levels[0]))
        table = stage_table(config)

    def denoise(x, timestep):
        now = state["now"]
        assert torch.equal(x, now.x)
        if isinstance(plan, Flat):
            return (x - clean) / now.sigma
        constants, own = table[now.stage], levels[now.stage]
        start = 1.0 if now.stage == 0 else constants.start
        below = torch.zeros_like(own) if now.stage == 0 else upsample(levels[now.stage - 1])
        signal = now.sigma * (1 - start) * below + (1 - now.sigma) * (1 - constants.end) * own
        level = now.sigma * start + (1 - now.sigma) * constants.end
        noise = (x - signal) / level
        return (start - constants.end) * noise + (1 - start) * below - (1 - constants.end) * own

    return denoise


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("law", [None, LINEAR, EXPONENTIAL])
@pytest.mark.parametrize("lag", [False, True])
def test_perfect_model_recovers_the_data(plan, law, lag):
    config = ScheduleConfig(stages=3 if isinstance(plan, Pyramid) else 1, dynamic=law, lag=lag)
    clean, state = randn(1), {}
    loop = steps(perfect(clean, plan, config, state), plan, randn(2), config, generator(3))
    for now in loop:
        state["now"] = now
    assert now.done
    torch.testing.assert_close(now.x, clean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_perfect_model_ends_each_stage_on_its_own_end(solver):
    """The end of a stage must hold the right share of signal: all that is not noise."""
    plan, config = Pyramid(steps=(3, 3, 3), solver=solver), ScheduleConfig()
    clean = torch.ones(400, 1, 9, 8, 8)
    state = {}
    noise = randn(2, clean.shape)
    ends = {}
    for now in steps(perfect(clean, plan, config, state), plan, noise, config, generator(3)):
        state["now"] = now
        if now.sigma == 0:
            ends[now.stage] = now.x
    for stage, constants in enumerate(stage_table(config)):
        n = ends[stage].numel()
        assert ends[stage].mean().item() == pytest.approx(1 - constants.end, abs=5 / math.sqrt(n))
        assert ends[stage].std().item() == pytest.approx(constants.end, abs=5 / math.sqrt(n))


def test_flat_states():
    config = ScheduleConfig(stages=1, dynamic=EXPONENTIAL)
    told = []

    def denoise(x, timestep):
        told.append(timestep)
        return torch.zeros_like(x)

    noise = randn(0)
    states = list(steps(denoise, Flat(steps=3), noise, config))
    assert [(s.stage, s.step, s.done) for s in states] == [
        (0, 0, False),
        (0, 1, False),
        (0, 2, False),
        (0, 3, True),
    ]
    assert states[0].x is noise
    assert states[-1].sigma == 0
    for state, timestep in zip(states, told, strict=False):
        assert timestep.shape == (2,)
        torch.testing.assert_close(timestep, torch.full((2,), state.sigma * 1000))


def test_pyramid_states():
    config = ScheduleConfig(dynamic=LINEAR, lag=True)
    told = []

    def denoise(x, timestep):
        told.append((tuple(x.shape[-2:]), timestep.dtype, timestep.tolist()))
        return torch.zeros_like(x)

    full = torch.zeros(1, 1, 9, 48, 80)
    plan = Pyramid(steps=(2, 2, 2), solver="renoise")
    states = list(steps(denoise, plan, full, config, generator()))
    assert [(s.stage, s.step) for s in states] == [(i, k) for i in range(3) for k in range(3)]
    assert [s.done for s in states] == [False] * 8 + [True]
    assert [s.sigma == 0 for s in states] == [False, False, True] * 3
    times = [998, 833, 742, 512, 385, 174]
    sizes = [(12, 20)] * 2 + [(24, 40)] * 2 + [(48, 80)] * 2
    assert told == [(size, torch.int64, [t]) for size, t in zip(sizes, times, strict=True)]

    told.clear()
    consistent = ScheduleConfig(dynamic=LINEAR, lag=False)
    sample(denoise, plan, full, consistent, generator())
    assert [t[2][0] for t in told] == [998, 833, 742, 547, 385, 253]

    told.clear()
    sample(denoise, Pyramid(steps=(1, 1, 1), solver="renoise", amplify=True), full, config)
    assert [t[2][0] for t in told] == times

    told.clear()
    exact = ScheduleConfig(dynamic=LINEAR, lag=False, fractional_timesteps=True)
    states = list(steps(denoise, plan, full, exact, generator()))
    shown = [998.534227, 833.963564, 742.821596, 547.192611, 385.413697, 253.990515]
    assert [t[2][0] for t in told] == pytest.approx(shown, abs=1e-4)
    assert {t[1] for t in told} == {torch.float32}
    assert [s.timestep for s in states if s.sigma] == pytest.approx(shown, abs=1e-4)


def test_zero_init_spares_the_denoiser():
    config, calls = ScheduleConfig(), []

    def denoise(x, timestep):
        calls.append(timestep[0].item())
        return torch.ones_like(x)

    plan = Pyramid(steps=(4, 2, 2), zero_init=2)
    states = list(steps(denoise, plan, randn(0), config, generator()))
    assert len(calls) == 6
    torch.testing.assert_close(states[1].x, states[0].x)
    torch.testing.assert_close(states[2].x, states[0].x)
    assert not torch.allclose(states[3].x, states[0].x)


def test_a_velocity_of_zero_is_what_zero_init_means():
    config = ScheduleConfig(dynamic=EXPONENTIAL)

    count = 3
    plan = Pyramid(steps=(6, 2, 2), zero_init=count)
    spared = sample(network(), plan, randn(0), config, generator())
    index = {"k": 0}

    def zeroed(x, timestep):
        index["k"] += 1
        velocity = network()(x, timestep)
        return velocity * 0 if index["k"] <= count else velocity

    asked = sample(zeroed, Pyramid(steps=(6, 2, 2)), randn(0), config, generator())
    assert torch.equal(spared, asked)


def test_the_caller_chooses_the_gradient_mode_of_each_step():
    factor = torch.tensor(0.5, requires_grad=True)
    loop = steps(lambda x, _: x * factor, Flat(steps=3), randn(0), ScheduleConfig(stages=1))
    with torch.no_grad():
        next(loop)
        assert not next(loop).x.requires_grad
    assert next(loop).x.requires_grad
    with torch.no_grad():
        assert next(loop).done


def oracle_loop(denoise, config, solver, counts, noise, dtype, amplify, zero_init=0):
    """The released pyramid loop around the oracle's schedulers."""
    kind = HeliosDMDScheduler if solver == "renoise" else HeliosScheduler
    scheduler = kind.from_config(config.to_json(solver))
    source = generator(9)
    batch, channels, frames, rows, columns = noise.shape
    x = noise.permute(0, 2, 1, 3, 4).reshape(-1, channels, rows, columns)
    for _ in counts[1:]:
        rows, columns = rows // 2, columns // 2
        x = F.interpolate(x, size=(rows, columns), mode="bilinear") * 2
    x = x.reshape(batch, frames, channels, rows, columns).permute(0, 2, 1, 3, 4)
    for stage, count in enumerate(counts):
        tokens = frames * x.shape[-2] * x.shape[-1] // 4
        law = config.dynamic
        scheduler.set_timesteps(
            count, stage, mu=law.mu(tokens) if law else None, is_amplify_first_chunk=amplify
        )
        if stage:
            rows, columns = rows * 2, columns * 2
            flat = x.permute(0, 2, 1, 3, 4).reshape(-1, channels, rows // 2, columns // 2)
            flat = F.interpolate(flat, size=(rows, columns), mode="nearest")
            x = flat.reshape(batch, frames, channels, rows, columns).permute(0, 2, 1, 3, 4)
            signal = 1 - scheduler.ori_start_sigmas[stage]
            gamma = config.gamma
            alpha = 1 / (math.sqrt(1 + 1 / gamma) * (1 - signal) + signal)
            beta = alpha * (1 - signal) / math.sqrt(gamma)
            x = alpha * x + beta * block_noise(x.shape, gamma, source).to(dtype)
        start = x
        for k, t in enumerate(scheduler.timesteps):
            velocity = denoise(x, t.expand(batch).to(torch.int64))
            if stage == 0 and k < zero_init:
                velocity = velocity * 0.0
            extra = {}
            if solver == "renoise":
                extra = {
                    "cur_sampling_step": k,
                    "dmd_noisy_tensor": start,
                    "dmd_sigmas": scheduler.sigmas,
                    "dmd_timesteps": scheduler.timesteps,
                    "all_timesteps": scheduler.timesteps,
                }
            x = scheduler.step(velocity, t, x, return_dict=False, **extra)[0]
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("solver", "counts", "amplify", "zero_init", "law"),
    [
        ("unipc", (3, 2, 2), False, 0, EXPONENTIAL),
        ("unipc", (3, 2, 5), False, 2, EXPONENTIAL),
        ("unipc", (1, 1, 1), False, 0, LINEAR),
        ("unipc", (2, 3, 2), False, 0, None),
        ("euler", (2, 3, 1), False, 0, EXPONENTIAL),
        ("renoise", (2, 2, 2), False, 0, LINEAR),
        ("renoise", (2, 2, 2), True, 0, LINEAR),
        ("renoise", (1, 1, 1), False, 0, EXPONENTIAL),
    ],
)
def test_pyramid_loop_equals_the_oracle(solver, counts, amplify, zero_init, law, dtype):
    config = ScheduleConfig(dynamic=law, lag=True)
    plan = Pyramid(steps=counts, solver=solver, amplify=amplify, zero_init=zero_init)
    noise = randn(5)
    expected = oracle_loop(network(dtype), config, solver, counts, noise, dtype, amplify, zero_init)
    found = sample(network(dtype), plan, noise, config, generator(9), rounding=dtype)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected), (found - expected).abs().max()


@pytest.mark.parametrize("plan", PLANS)
def test_without_rounding_the_sample_keeps_its_precision(plan):
    config = ScheduleConfig(stages=3 if isinstance(plan, Pyramid) else 1, dynamic=LINEAR)
    exact = sample(network(), plan, randn(1), config, generator(4))
    kept, rounded = (
        sample(network(torch.bfloat16), plan, randn(1), config, generator(4), rounding=rounding)
        for rounding in (None, torch.bfloat16)
    )
    assert kept.dtype == torch.float32
    assert (kept - exact).square().mean() < (rounded - exact).square().mean()


def test_two_stages():
    config = ScheduleConfig(stages=2, stage_range=(0, 0.5, 1), dynamic=LINEAR, lag=True)
    expected = oracle_loop(network(), config, "unipc", (2, 3), randn(5), torch.float32, False)
    found = sample(network(), Pyramid(steps=(2, 3)), randn(5), config, generator(9))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_seed_gives_the_same_latents(plan):
    config = ScheduleConfig(stages=3 if isinstance(plan, Pyramid) else 1)
    first, again = (sample(network(), plan, randn(1), config, generator(4)) for _ in range(2))
    assert torch.equal(first, again)


def test_a_batch_of_generators_equals_each_alone():
    config, plan = ScheduleConfig(dynamic=LINEAR), Pyramid(steps=(2, 2, 2), solver="renoise")
    noise = randn(1)
    together = sample(network(), plan, noise, config, [generator(1), generator(2)])
    for index in range(2):
        one = slice(index, index + 1)
        alone = sample(network(), plan, noise[one], config, generator(index + 1))
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-6)


def test_plans_must_fit():
    config = ScheduleConfig()
    with pytest.raises(ValueError, match="3 numbers"):
        steps(network(), Pyramid(steps=(2, 2)), randn(0), config)
    with pytest.raises(ValueError, match="multiples of 8"):
        steps(network(), Pyramid(), randn(0, (1, 4, 9, 12, 16)), config)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flat(steps=0),
        lambda: Flat(solver="renoise"),
        lambda: Pyramid(steps=()),
        lambda: Pyramid(steps=(2, 0, 2)),
        lambda: Pyramid(solver="heun"),
        lambda: Pyramid(zero_init=-1),
        lambda: Pyramid(amplify=True),
        lambda: Pyramid(exits=(1, 1, 1)),
        lambda: Pyramid(steps=(2, 2, 2), solver="renoise", exits=(1, 3, 1)),
        lambda: Pyramid(steps=(2, 2, 2), solver="renoise", exits=(1, 1)),
        lambda: Pyramid(visit=-1),
        lambda: Pyramid(solver="renoise", visit=2),
    ],
)
def test_plans_without_meaning(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_is_read_back_from_the_device(plan):
    """On the meta device there are no values, so reading one is an error."""
    config = ScheduleConfig(stages=3 if isinstance(plan, Pyramid) else 1, dynamic=LINEAR)
    noise = torch.empty(SHAPE, device="meta")
    guided = guide(lambda x, _: x.bfloat16(), lambda x, _: x.bfloat16(), CFGZero(2.0))
    assert sample(guided, plan, noise, config).shape == SHAPE


@pytest.mark.parametrize("amplify", [False, True])
def test_leaving_after_the_last_step_is_the_whole_path(amplify):
    plan = Pyramid(steps=(2, 2, 2), solver="renoise", amplify=amplify)
    config = ScheduleConfig(dynamic=LINEAR)
    early = replace(plan, exits=plan.lengths)
    paths = [list(steps(network(), p, randn(0), config, generator(1))) for p in (plan, early)]
    assert len(paths[0]) == len(paths[1]) == sum(plan.lengths) + 3
    for one, other in zip(*paths, strict=True):
        assert torch.equal(one.x, other.x)
        assert (one.timestep, one.sigma, one.done) == (other.timestep, other.sigma, other.done)


def test_leaving_early_ends_the_stage_on_the_prediction_made_there():
    plan = Pyramid(steps=(2, 2, 2), solver="renoise", exits=(1, 2, 1))
    config = ScheduleConfig(dynamic=LINEAR)
    path = list(steps(network(), plan, randn(0), config, generator(1)))
    assert [(s.stage, s.step) for s in path] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    for before, after in ((path[0], path[1]), (path[3], path[4]), (path[5], path[6])):
        told = torch.full((SHAPE[0],), before.timestep, dtype=torch.int64)
        clean = before.x - before.sigma * network()(before.x, told)
        torch.testing.assert_close(after.x, clean, rtol=1e-5, atol=1e-6)
    assert path[-1].done


def test_visited_levels_are_recorded():
    config = ScheduleConfig(dynamic=LINEAR)
    few = Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True)
    wanted = {(s.stage, s.timestep) for s in steps(network(), few, randn(0), config) if s.sigma}
    plan = Pyramid(steps=(5, 5, 5), visit=4)
    found = {(s.stage, s.timestep) for s in steps(network(), plan, randn(0), config) if s.sigma}
    assert len(wanted) == 12
    assert wanted <= found
