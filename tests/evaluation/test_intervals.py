import math

import numpy as np
import pytest

from helios.evaluation.intervals import curve, jackknife, mean_estimate, paired_estimate


def test_means_are_over_prompts_not_videos() -> None:
    estimate = mean_estimate([[0.0], [1.0, 1.0, 1.0, 1.0]])
    assert estimate.value == 0.5
    assert estimate.count == 2


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        values = rng.normal(3, 2, 40)
        estimate = mean_estimate([[value] for value in values], seed=trial)
        held += estimate.low <= 3 <= estimate.high
    assert 180 <= held <= 199


def test_equal_seeds_give_equal_intervals() -> None:
    groups = [[float(k % 7)] for k in range(30)]
    assert mean_estimate(groups) == mean_estimate(groups)


def test_pairs_know_what_they_share() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.normal(0, 10, 60)
    ours, theirs = prompt + 1 + rng.normal(0, 0.1, 60), prompt
    paired = paired_estimate([[v] for v in ours], [[v] for v in theirs])
    assert paired.low > 0.9
    assert paired.high < 1.1
    alone = mean_estimate([[v] for v in ours])
    assert alone.high - alone.low > 20 * (paired.high - paired.low)
    with pytest.raises(ValueError, match="same prompts"):
        paired_estimate([[1.0]], [[1.0], [2.0]])


def test_what_was_not_measured_is_left_out() -> None:
    assert mean_estimate([[math.nan], [2.0], [math.nan, 4.0]]).value == 3
    nothing = mean_estimate([[math.nan]])
    assert math.isnan(nothing.value)
    assert nothing.to_json() == {"value": None, "low": None, "high": None, "n": 0}


def test_all_right_is_not_certain() -> None:
    everything = mean_estimate([[1.0]] * 10, share=True)
    assert everything.value == everything.high == 1
    assert everything.low == pytest.approx(0.722, abs=1e-3)
    some = [[1.0]] * 9 + [[0.0]]
    assert mean_estimate(some, share=True) == mean_estimate(some)


def test_curves_have_bands_and_keep_gaps() -> None:
    rng = np.random.default_rng(0)
    rows = [np.array([math.nan, k + rng.normal(), 5.0]) for k in range(20)]
    mean, low, high = curve(rows)
    assert math.isnan(mean[0])
    assert low[1] < mean[1] < high[1]
    assert low[2] == mean[2] == high[2] == 5
    assert math.isnan(curve(rows[:1])[1][1])


def test_the_jackknife_takes_the_bias_away() -> None:
    rng = np.random.default_rng(1)
    plain, corrected, held = [], [], 0
    for _ in range(200):
        values = rng.normal(0, 1, 24)

        def variance(chosen: np.ndarray, values: np.ndarray = values) -> float:
            return float(np.var(values[chosen]))  # too small by 1/n

        plain.append(variance(np.arange(24)))
        estimate = jackknife(24, variance)
        corrected.append(estimate.value)
        held += estimate.low <= 1 <= estimate.high
    assert abs(np.mean(corrected) - 1) < 0.5 * abs(np.mean(plain) - 1) + 0.02
    assert held > 170
    assert math.isnan(jackknife(3, lambda chosen: float(len(chosen))).low)
