import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import HeliosPyramidPipeline

from helios.diffusion import (
    ScheduleConfig,
    block_noise,
    downsample,
    downsample_noise,
    draw_stage_point,
    enter_stage,
    mix,
    stage_endpoints,
    stage_table,
    transition,
    upsample,
)
from helios.diffusion.pyramid import _block_factor

CONFIG = ScheduleConfig()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def blocks(x):
    """``[..., h, w]`` as ``[N, 4]``: the cells of each 2 x 2 block."""
    return x.unfold(-2, 2, 2).unfold(-2, 2, 2).reshape(-1, 4)


def test_downsample_is_the_mean_of_four():
    x = randn(2, 3, 2, 6, 8)
    expected = blocks(x).mean(1).view(2, 3, 2, 3, 4)
    torch.testing.assert_close(downsample(x), expected)
    torch.testing.assert_close(downsample_noise(x), 2 * expected)


def test_downsample_undoes_upsample():
    x = randn(2, 3, 2, 5, 7)
    assert torch.equal(downsample(upsample(x)), x)
    assert torch.equal(upsample(x)[..., ::2, 1::2], x)


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="even"):
        downsample(randn(1, 1, 1, 3, 4))
    with pytest.raises(ValueError, match="even"):
        block_noise((1, 1, 1, 3, 4), 1 / 3)


def test_downsampled_noise_is_standard_normal():
    noise = downsample_noise(downsample_noise(randn(4, 16, 9, 48, 80)))
    n = noise.numel()
    assert noise.mean().abs() < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean()
    assert neighbours.abs() < 4 / math.sqrt(n)


@pytest.mark.parametrize("gamma", [1 / 3, 0.2])
def test_block_factor(gamma):
    factor = _block_factor(gamma).double()
    covariance = (1 + gamma) * torch.eye(4).double() - gamma
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=0, atol=3e-7)
    assert torch.equal(factor, factor.tril())
    if gamma == 1 / 3:
        rows = [[1, 0, 0, 0], [-1 / 3, 0.9428, 0, 0], [-1 / 3, -0.4714, 0.8165, 0]]
        expected = torch.tensor([*rows, [-1 / 3, -0.4714, -0.8165, 4.2e-4]]).double()
        torch.testing.assert_close(factor, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("gamma", [1 / 3, 0.2])
def test_block_noise_covariance(gamma):
    shape = (2, 16, 9, 48, 40)
    noise = block_noise(shape, gamma, generator())
    cells = blocks(noise)
    n = len(cells)
    found = cells.T @ cells / n
    expected = (1 + gamma) * torch.eye(4) - gamma
    assert (found - expected).abs().max() < 5 / math.sqrt(n)
    assert cells.mean(0).abs().max() < 5 / math.sqrt(n)
    across = (noise[..., 1:-1:2] * noise[..., 2::2]).mean()  # neighbours of different blocks
    assert across.abs() < 5 / math.sqrt(n)


def test_block_noise_sums_to_almost_nothing():
    sums = blocks(block_noise((1, 16, 9, 24, 40), 1 / 3, generator())).sum(1)
    assert sums.std().item() == pytest.approx(4.2e-4, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 3, 2, 4, 6), (2, 4, 9, 8, 12)])
def test_block_noise_is_drawn_in_the_oracles_order(shape, monkeypatch):
    """The oracle's float32 factorisation fails on some machines; it is lent ours."""
    monkeypatch.setattr(torch.linalg, "cholesky", lambda _: _block_factor(1 / 3))
    pipeline = SimpleNamespace(scheduler=SimpleNamespace(config=SimpleNamespace(gamma=1 / 3)))
    theirs, ours = generator(7), generator(7)
    expected = HeliosPyramidPipeline.sample_block_noise(
        pipeline, *shape, device=torch.device("cpu"), generator=theirs
    )
    assert torch.equal(block_noise(shape, 1 / 3, ours), expected)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_one_generator_per_sample_does_not_see_the_batch():
    shape = (3, 4, 2, 4, 6)
    together = block_noise(shape, 1 / 3, [generator(seed) for seed in (1, 2, 3)])
    for index, seed in enumerate((1, 2, 3)):
        alone = block_noise((1, *shape[1:]), 1 / 3, generator(seed))
        assert torch.equal(together[index : index + 1], alone)
    with pytest.raises(ValueError, match="generator"):
        block_noise(shape, 1 / 3, [generator()])


@pytest.mark.parametrize(
    ("stage", "alpha", "beta"), [(1, 0.6001201441, 0.6926122274), (2, 0.7498129217, 0.4333367311)]
)
def test_transition_table(stage, alpha, beta):
    assert transition(CONFIG, stage) == pytest.approx((alpha, beta), abs=1e-9)


def test_the_first_stage_is_not_entered():
    for stage in (0, 3):
        with pytest.raises(ValueError, match="stage"):
            transition(CONFIG, stage)


@pytest.mark.parametrize(
    "config",
    [CONFIG, ScheduleConfig(gamma=0.2), ScheduleConfig(stages=2, stage_range=(0, 0.5, 1))],
)
def test_transition_keeps_signal_and_noise(config):
    """Signal, cell variance and block covariance arrive as the next stage was trained on.

    At the end of a stage the noise level is ``e``; doubled cells share their noise, so a block has
    covariance ``alpha^2 e^2 11' + beta^2 C``, which must be ``s'^2 I``.
    """
    table = stage_table(config)
    for stage in range(1, config.stages):
        alpha, beta = transition(config, stage)
        end, start = table[stage - 1].end, table[stage].start
        assert alpha * (1 - end) == pytest.approx(1 - start, abs=1e-12)
        gamma = config.gamma
        diagonal = (alpha * end) ** 2 + beta**2
        between = (alpha * end) ** 2 - beta**2 * gamma
        assert diagonal == pytest.approx(start**2, abs=1e-12)
        assert between == pytest.approx(0, abs=1e-12)


def test_entering_matches_the_trained_start_point():
    """Monte Carlo of the same: mean and block covariance of ``enter_stage`` and of training."""
    clean = randn(1, 1, 1, 8, 8, seed=1).expand(30_000, 1, 1, 8, 8)
    noise = torch.randn(clean.shape, generator=generator(2))
    ends = stage_endpoints(clean, noise, CONFIG)
    for stage in (1, 2):
        entered = enter_stage(ends[stage - 1].end, stage, CONFIG, generator(3 + stage))
        trained = ends[stage].start
        deviation = stage_table(CONFIG)[stage].start
        bound = 6 * deviation / math.sqrt(len(clean))
        assert (entered.mean(0) - trained.mean(0)).abs().max() < bound
        for x in (entered, trained):
            cells = blocks(x - x.mean(0))
            found = cells.T @ cells / len(cells)
            assert (found - deviation**2 * torch.eye(4)).abs().max() < 0.01


def test_endpoints_follow_their_formulas():
    clean, noise = randn(2, 3, 2, 8, 16, seed=1), randn(2, 3, 2, 8, 16, seed=2)
    half, quarter = downsample(clean), downsample(downsample(clean))
    half_noise = downsample_noise(noise)
    found = stage_endpoints(clean, noise, CONFIG)
    table = stage_table(CONFIG)
    assert [pair.end.shape[-1] for pair in found] == [4, 8, 16]
    assert torch.equal(found[0].start, downsample_noise(half_noise))
    assert torch.equal(found[0].end, mix(quarter, found[0].start, table[0].end))
    assert torch.equal(found[1].start, mix(upsample(quarter), half_noise, table[1].start))
    assert torch.equal(found[1].end, mix(half, half_noise, table[1].end))
    assert torch.equal(found[2].start, mix(upsample(half), noise, table[2].start))
    assert torch.equal(found[2].end, clean)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_training_points_lie_on_the_grid_of_their_stage(stage):
    n = 50_000
    sigma, timestep = draw_stage_point(n, stage, CONFIG, generator=generator())
    band = stage_table(CONFIG)[stage]
    assert sigma.max().item() == pytest.approx(0.999)
    assert sigma.min().item() == pytest.approx(0.000999, rel=1e-4)
    assert timestep.max().item() == pytest.approx(band.timestep_max)
    assert timestep.min().item() == pytest.approx(band.timestep_min, rel=1e-5)
    index = (1 - sigma.double() / 0.999) * 1000
    assert (index - index.round()).abs().max() < 1e-3
    expected = torch.linspace(band.timestep_max, band.timestep_min, 1000)[index.round().long()]
    torch.testing.assert_close(timestep, expected, rtol=0, atol=1e-3)
    assert sigma.mean().item() == pytest.approx(0.999 / 2 + 0.0005, abs=3 * 0.29 / math.sqrt(n))
