"""Drift: statistics in closed form, compared before they are updated, noise in history only."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helios.history import DriftConfig, DriftMonitor, DriftReading, LatentStatistics, remembered


def chunk(mean: float = 0.0, scale: float = 1.0, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Latents whose channels have exactly this mean and standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 16, 9, 4, 6, generator=generator)
    variance, average = torch.var_mean(z, dim=(2, 3, 4), keepdim=True)
    return mean + scale * (z - average) / variance.sqrt()


def run(chunks: list[Tensor], config: DriftConfig | None = None) -> list[DriftReading]:
    monitor, readings = DriftMonitor(config or DriftConfig()), []
    for latents in chunks:
        monitor, reading = monitor.observe(latents)
        readings.append(reading)
    return readings


def test_statistics_are_per_sample_and_channel() -> None:
    latents = torch.stack([chunk(0.5, 2.0)[0], chunk(-1.0, 0.5, seed=1)[0]])
    seen = LatentStatistics.of(latents)
    assert seen.mean.shape == seen.variance.shape == (2, 16)
    torch.testing.assert_close(seen.mean, torch.tensor([[0.5], [-1.0]]).expand(2, 16))
    torch.testing.assert_close(seen.variance, torch.tensor([[4.0], [0.25]]).expand(2, 16))


def test_distance_is_the_length_over_channels_averaged_over_samples() -> None:
    one = LatentStatistics.of(chunk(batch=2))
    other = LatentStatistics.of(torch.stack([chunk(0.3)[0], chunk(0.1, seed=2)[0]]))
    mean, variance = one.distance(other)
    assert mean == pytest.approx(math.sqrt(16) * (0.3 + 0.1) / 2, rel=1e-4)
    assert variance == pytest.approx(0.0, abs=1e-4)


def test_a_steady_video_does_not_drift() -> None:
    readings = run([chunk(seed=seed) for seed in range(8)])
    assert all(reading.noise == 0 and reading.mean < 1e-4 for reading in readings)


def test_the_comparison_comes_before_the_update() -> None:
    """The full distance is measured; the published order would show 0.9 of it."""
    step, growth = 0.05, 1.1
    _, second, third = run([chunk(), chunk(step, growth, seed=1), chunk(step, growth, seed=2)])
    assert second.mean == pytest.approx(4 * step, rel=1e-4)
    assert second.variance == pytest.approx(4 * (growth**2 - 1), rel=1e-4)
    assert third.mean == pytest.approx(0.9 * 4 * step, rel=1e-4)
    assert third.variance == pytest.approx(0.9 * 4 * (growth**2 - 1), rel=1e-4)


@pytest.mark.parametrize(
    ("mean", "scale", "drifts"), [(0.1, 1.0, False), (0.0, 1.2, False), (0.1, 1.2, True)]
)
def test_drift_needs_both_mean_and_variance(mean: float, scale: float, drifts: bool) -> None:
    reading = run([chunk(), chunk(mean, scale, seed=1)])[1]
    assert (reading.noise > 0) == drifts


def test_noise_grows_with_the_smaller_excess_up_to_its_limit() -> None:
    config = DriftConfig(mean_threshold=0.2, variance_threshold=0.1, noise=0.1, max_noise=0.25)
    twice = run([chunk(), chunk(0.1, 2.0, seed=1)], config)[1]
    assert twice.noise == pytest.approx(0.1 * (4 * 0.1) / 0.2, rel=1e-4)
    assert run([chunk(), chunk(3.0, 3.0, seed=1)], config)[1].noise == 0.25


def test_a_slow_slide_is_noticed() -> None:
    """Each step alone is below the threshold; against the running statistics they add up."""
    slide = [chunk(0.02 * k, 1 + 0.015 * k, seed=k) for k in range(12)]
    pairs = [run([one, other])[1] for one, other in pairwise(slide)]
    assert all(reading.noise == 0 for reading in pairs)
    assert any(reading.noise > 0 for reading in run(slide))


def test_memory_of_a_drifting_chunk_is_noised_and_keeps_its_variance_law() -> None:
    latents = chunk(0.5, 2.0)
    reading = DriftReading(1.0, 1.0, 0.25)
    kept = remembered(latents, reading, torch.Generator().manual_seed(3))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(kept, 0.75 * latents + 0.25 * noise)


def test_nothing_is_drawn_or_changed_without_drift() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    latents = chunk()
    assert remembered(latents, DriftReading(9.0, 0.0, 0.0), generator) is latents
    assert torch.equal(generator.get_state(), before)


def test_restored_statistics_continue_bit_for_bit() -> None:
    chunks = [chunk(0.03 * k, 1 + 0.02 * k, seed=k) for k in range(6)]
    config = DriftConfig(rho=0.7)
    monitor = DriftMonitor(config)
    assert DriftMonitor.from_state(config, monitor.state_dict()).running is None
    for latents in chunks[:3]:
        monitor, _ = monitor.observe(latents)
    again = DriftMonitor.from_state(config, monitor.state_dict())
    assert [again.observe(latents)[1] for latents in chunks[3:]] == [
        monitor.observe(latents)[1] for latents in chunks[3:]
    ]
    with pytest.raises(ValueError, match="a mean and a variance"):
        DriftMonitor.from_state(config, {"mean": torch.zeros(1, 16)})


def test_what_turns_it_on() -> None:
    config = DriftConfig(noise=0.2)
    assert DriftConfig.make(False) is None
    assert DriftConfig.make(True) == DriftConfig()
    assert DriftConfig.make(config) is config
    assert DriftConfig.make({"noise": 0.2}) == config


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1, "must be False, True or a DriftConfig"),
        ("yes", "must be False, True or a DriftConfig"),
        ({"nose": 1}, "must be False, True or a DriftConfig"),
        ({"rho": 1.0}, "rho must be at least 0 and below 1"),
        ({"mean_threshold": 0}, "mean_threshold must be positive"),
        ({"variance_threshold": float("nan")}, "variance_threshold must be a number"),
        ({"noise": 0.5}, "noise must rise to max_noise"),
        ({"noise": True}, "noise must be a number"),
        ({"max_noise": 1.5}, "within 0 to 1"),
    ],
)
def test_unusable_configurations_are_refused(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        DriftConfig.make(value)
