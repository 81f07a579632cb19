import math

import numpy as np
import pytest
import torch

from helios.evaluation.metrics.seams import boundary_flicker, difference, snap_back, snap_rate

CHUNK = 33


def steady(chunks: int = 6, speed: float = 2.0, seed: int = 0) -> np.ndarray:
    """Steps that vary a little, everywhere alike."""
    noise = np.random.default_rng(seed).uniform(0.8, 1.2, chunks * CHUNK)
    return (speed * noise).astype(np.float32)


def test_without_seams_the_flicker_is_one() -> None:
    assert boundary_flicker(steady(40)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("factor", [2.0, 5.0])
def test_flicker_is_the_ratio_at_borders(factor: float) -> None:
    steps = steady(40)
    steps[CHUNK::CHUNK] *= factor
    assert boundary_flicker(steps) == pytest.approx(factor, rel=0.1)


def test_flicker_needs_a_border_and_survives_stillness() -> None:
    assert math.isnan(boundary_flicker(steady(1)))
    still = np.zeros(3 * CHUNK, np.float32)
    assert boundary_flicker(still) == 0
    still[CHUNK] = 1
    assert math.isfinite(boundary_flicker(still))


def test_a_walk_does_not_snap() -> None:
    rng = np.random.default_rng(0)
    away = 20 + np.cumsum(rng.normal(0, 1, 60 * CHUNK)).astype(np.float32)
    assert abs(snap_back(away)) < 0.5
    assert snap_rate(away) < 0.1


def test_returning_to_the_first_frame_is_seen() -> None:
    rng = np.random.default_rng(0)
    ramp = np.tile(np.linspace(0, 20, CHUNK), 10)
    away = (5 + ramp + rng.normal(0, 0.2, len(ramp))).astype(np.float32)
    assert snap_back(away) > 10
    assert snap_rate(away) == 1
    # The first border does not count: nothing but the first frame and its chunk are remembered.
    once = np.concatenate([ramp[:CHUNK], 20 + rng.normal(0, 0.2, 5 * CHUNK)])
    once[CHUNK] = 0
    assert snap_rate(once.astype(np.float32)) == 0
    assert math.isnan(snap_back(away[: 2 * CHUNK]))


def test_jumps_away_are_no_return() -> None:
    away = np.repeat(np.arange(8.0) * 10, CHUNK).astype(np.float32)
    assert snap_back(away) < 0
    assert snap_rate(away) == 0


def test_differences_are_in_levels() -> None:
    first = torch.full((2, 3, 4, 4, 3), 10, dtype=torch.uint8)
    other = torch.full((2, 1, 4, 4, 3), 250, dtype=torch.uint8)
    assert difference(first, other).shape == (2, 3)
    assert difference(other, first).unique().tolist() == [240.0]
