import numpy as np
import pytest
import torch

from helios.evaluation.metrics.features import (
    Moments,
    diversity,
    frechet_distance,
    kernel_distance,
    thumbnails,
)
from helios.evaluation.metrics.scene_judge import SceneJudge
from helios.evaluation.train_judge import judge_config


def normal(count: int, mean: float, spread: float, width: int = 6, seed: int = 0) -> np.ndarray:
    return mean + spread * np.random.default_rng(seed).standard_normal((count, width))


def test_closed_form_of_two_gaussians() -> None:
    first, second = normal(20_000, 0, 1), normal(20_000, 2, 3, seed=1)
    # width * (mean difference)² + width * (3 - 1)²
    found = frechet_distance(Moments.of(first), Moments.of(second))
    assert found == pytest.approx(6 * 4 + 6 * 4, rel=0.03)
    assert frechet_distance(Moments.of(second), Moments.of(first)) == pytest.approx(found)
    assert frechet_distance(Moments.of(first), Moments.of(first)) == pytest.approx(0, abs=1e-6)


def test_correlations_count() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((20_000, 2))
    turned = first @ np.linalg.cholesky(np.array([[1.0, 0.9], [0.9, 1.0]])).T
    # Eigenvalues 1.9 and 0.1 against 1 and 1: tr = 4 - 2 (√1.9 + √0.1).
    expected = 4 - 2 * (1.9**0.5 + 0.1**0.5)
    assert frechet_distance(Moments.of(first), Moments.of(turned)) == pytest.approx(
        expected, abs=0.02
    )


def test_moments_grow_and_shrink() -> None:
    rows = normal(50, 1, 2)
    grown = Moments(6)
    grown.add(rows[:20])
    grown.add(rows[20:])
    np.testing.assert_allclose(grown.covariance, np.cov(rows.T), rtol=1e-9)
    rest = grown.without(Moments.of(rows[:20]))
    np.testing.assert_allclose(rest.mean, rows[20:].mean(axis=0))
    np.testing.assert_allclose(rest.covariance, np.cov(rows[20:].T), rtol=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        _ = Moments.of(rows[:1]).covariance


def test_the_kernel_distance_is_unbiased_even_for_few() -> None:
    same = [
        kernel_distance(normal(8, 0, 1, seed=2 * k), normal(8, 0, 1, seed=2 * k + 1))
        for k in range(200)
    ]
    spread = np.std(same) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 4 * spread
    other = kernel_distance(normal(200, 0, 1), normal(200, 0.5, 1, seed=1))
    assert other > 20 * spread


def test_diversity_is_the_distance_of_pairs() -> None:
    videos = np.zeros((3, 2, 4, 4, 3), np.uint8)
    videos[1], videos[2] = 10, 30
    assert diversity(videos) == pytest.approx((10 + 30 + 20) / 3)
    assert diversity(videos[:1].repeat(2, axis=0)) == 0
    with pytest.raises(ValueError, match="at least 2"):
        diversity(videos[:1])


def test_thumbnails_are_means_of_blocks() -> None:
    frames = torch.randint(0, 256, (2, 33, 16, 24, 3), dtype=torch.uint8)
    small = thumbnails(frames)
    assert small.shape == (2, 5, 2, 3, 3)
    block = frames[1, 32, 8:, 16:].float().mean(dim=(0, 1))
    torch.testing.assert_close(small[1, 4, 1, 2].float(), block, atol=0.5, rtol=0)


def test_features_of_a_judge_depend_on_the_video_alone() -> None:
    torch.manual_seed(0)
    judge = SceneJudge(judge_config()).eval()
    frames = torch.randint(0, 256, (3, 33, 32, 48, 3), dtype=torch.uint8)
    features = judge.features(frames)
    assert features.shape == (3, 2 * judge.config.hidden)
    torch.testing.assert_close(judge.features(frames, batch_size=1), features, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        judge.train().features(frames)
