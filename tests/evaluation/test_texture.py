import pytest
import torch

from helios.evaluation.degrade import blur
from helios.evaluation.metrics.pixel import frame_sharpness, sharpness
from helios.evaluation.metrics.texture import frame_blur, frame_noise


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """Patches with crisp edges, as scenes have them, uint8 ``[1, 64, 96, 3]``."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(30, 220, (1, 8, 12, 3), generator=generator).byte()
    return patches.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def softened(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    return blur(picture.movedim(-1, 1).float(), sigma).movedim(1, -1).round().byte()


def noisy(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # The same noise in all channels, so that the grey frame has just this deviation.
    noise = sigma * torch.randn((*picture.shape[:-1], 1), generator=generator)
    return (picture.float() + noise).round().clamp(0, 255).byte()


def test_blur_rises_with_blur_and_sharpness_falls(picture: torch.Tensor) -> None:
    frames = [picture, *(softened(picture, sigma) for sigma in (0.7, 1.5, 3.0))]
    blurs = [frame_blur(frame).item() for frame in frames]
    crisp = [frame_sharpness(frame).item() for frame in frames]
    assert blurs == sorted(blurs)
    assert blurs[-1] - blurs[0] > 0.3
    assert crisp == sorted(crisp, reverse=True)
    assert 0 <= blurs[0] < blurs[-1] <= 1


def test_a_flat_frame_has_nothing_to_lose() -> None:
    assert frame_blur(torch.full((2, 32, 32, 3), 90, dtype=torch.uint8)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("sigma", [2.0, 5.0, 12.0])
def test_noise_is_measured_in_levels_despite_edges(picture: torch.Tensor, sigma: float) -> None:
    assert frame_noise(noisy(picture, sigma)).item() == pytest.approx(sigma, rel=0.15)


def test_noise_is_not_blur_and_not_edges(picture: torch.Tensor) -> None:
    assert frame_noise(picture).item() == 0
    assert frame_noise(softened(picture, 1.5)).item() < 0.6
    assert frame_blur(noisy(picture, 5)).item() < frame_blur(softened(picture, 1.0)).item()


def test_clips_are_means_of_frames(picture: torch.Tensor) -> None:
    clip = torch.cat([picture, softened(picture, 1.0), softened(picture, 2.0)])[None]
    assert frame_blur(clip).shape == (1, 3)
    assert sharpness(clip).item() == pytest.approx(frame_sharpness(clip).mean().item())
