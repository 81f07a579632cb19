import pytest
import torch
from torch.nn import functional as F

from helios.evaluation.metrics.flow import flow, warp
from helios.evaluation.metrics.motion import pair_motion, triple_smoothness


def texture(height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(1, 3, height // 4, width // 4, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)


def moving(steps: list[tuple[float, float]], **size: int) -> torch.Tensor:
    """A texture displaced by the sums of ``steps`` (across, down), uint8 ``[T, H, W, 3]``."""
    picture, frames = texture(**size), []
    across = down = 0.0
    for dx, dy in [(0.0, 0.0), *steps]:
        across, down = across + dx, down + dy
        shift = torch.tensor([across, down]).view(1, 2, 1, 1).expand(1, 2, *picture.shape[-2:])
        frames.append(warp(picture, -shift))
    return torch.cat(frames).movedim(1, -1).round().byte()


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, 0.0), (0.5, -0.5), (-2.0, 4.0), (7.0, 1.0)])
def test_a_displacement_is_found(shift: tuple[float, float]) -> None:
    frames = moving([shift]).float().mean(dim=-1)
    found = flow(frames[:1], frames[1:])[0, :, 12:-12, 12:-12]
    error = (found - torch.tensor(shift).view(2, 1, 1)).norm(dim=0)
    assert error.median().item() < 0.1
    assert error.mean().item() < 0.3


def test_two_halves_may_move_apart() -> None:
    left, right = moving([(-2.0, 0.0)]), moving([(2.0, 0.0)])
    both = torch.cat((left[:, :, :48], right[:, :, 48:]), dim=2).float().mean(dim=-1)
    across = flow(both[:1], both[1:])[0, 0]
    assert across[16:-16, 10:30].mean().item() == pytest.approx(-2, abs=0.3)
    assert across[16:-16, 66:86].mean().item() == pytest.approx(2, abs=0.3)


def test_flat_and_still_pictures_do_not_move() -> None:
    flat = torch.full((1, 32, 48), 100.0)
    assert flow(flat, flat + 3).abs().max().item() < 1e-3
    still = texture()[:, 0]
    assert flow(still, still).abs().max().item() < 1e-3


def test_amplitude_counts_in_pixels_of_the_reference_width() -> None:
    slow, fast = (pair_motion(moving([(v, 0.0)] * 3))[0].item() for v in (1.0, 3.0))
    # The picture is 96 wide, the reference 640.
    assert slow == pytest.approx(640 / 96, rel=0.1)
    assert fast == pytest.approx(3 * 640 / 96, rel=0.1)


def test_opposite_motions_do_not_cancel() -> None:
    there_and_back = moving([(2.0, 0.0), (-2.0, 0.0)])
    assert pair_motion(there_and_back).mean().item() == pytest.approx(2 * 640 / 96, rel=0.1)
    # Nor do those of one moment, in two halves of a picture: their mean flow is nothing.
    at_once = torch.cat((moving([(2.0, 0.0)]), moving([(-2.0, 0.0)])), dim=-2)
    assert pair_motion(at_once).mean().item() == pytest.approx(2 * 640 / 192, rel=0.2)


def test_wide_pictures_are_measured_small_and_told_large() -> None:
    frames = moving([(6.0, 0.0)], height=128, width=512)
    assert pair_motion(frames).item() == pytest.approx(6 * 640 / 512, rel=0.15)


def test_smoothness_falls_with_jerks() -> None:
    def of(frames: torch.Tensor) -> float:
        return triple_smoothness(frames[:1], frames[1:2], frames[2:3]).item()

    even = of(moving([(2.0, 0.0), (2.0, 0.0)]))
    jerky = of(moving([(4.0, 0.0), (0.0, 0.0)]))
    jerkier = of(moving([(6.0, 3.0), (-2.0, -3.0)]))
    assert even > 0.99
    assert even > jerky > jerkier


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16x16"):
        flow(torch.zeros(1, 8, 32), torch.zeros(1, 8, 32))
    with pytest.raises(ValueError, match="flow needs two"):
        flow(torch.zeros(1, 32, 32), torch.zeros(2, 32, 32))
