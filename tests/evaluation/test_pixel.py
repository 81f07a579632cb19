import math

import pytest
import torch

from helios.evaluation.metrics import (
    brightness,
    moving_pixels,
    moving_psnr,
    psnr,
    saturation,
    sharpness,
)


def flat(value: int, *shape: int) -> torch.Tensor:
    return torch.full((*shape, 3), value, dtype=torch.uint8)


@pytest.mark.parametrize("difference", [1, 5, 51, 255])
def test_psnr_of_a_constant_difference(difference: int) -> None:
    frames, reference = flat(difference, 2, 3, 8, 8), flat(0, 2, 3, 8, 8)
    expected = 20 * math.log10(255 / difference)
    for one, other in ((frames, reference), (reference, frames)):
        assert psnr(one, other).tolist() == pytest.approx([expected] * 2, abs=1e-4)


def test_psnr_is_per_clip_and_infinite_for_equal_clips() -> None:
    reference = flat(100, 2, 3, 8, 8)
    frames = reference.clone()
    frames[1] += 10
    values = psnr(frames, reference)
    assert values[0] == math.inf
    assert values[1].item() == pytest.approx(20 * math.log10(25.5), abs=1e-4)


def test_psnr_refuses_different_shapes() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(flat(0, 1, 3, 8, 8), flat(0, 1, 2, 8, 8))


def moving_square() -> torch.Tensor:
    """A white square of 4x4 that jumps between two places over black."""
    frames = flat(0, 1, 4, 16, 16)
    frames[0, :2, 2:6, 2:6] = 255
    frames[0, 2:, 8:12, 8:12] = 255
    return frames


def test_moving_pixels_are_those_the_square_visits() -> None:
    moving = moving_pixels(moving_square())
    assert moving.shape == (1, 4, 16, 16)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[2:6, 2:6] = expected[8:12, 8:12] = True
    assert all(torch.equal(frame, expected) for frame in moving[0])


def test_moving_psnr_ignores_the_background() -> None:
    reference = moving_square()
    frames = reference.clone()
    frames[:, :, 0] = 200
    assert moving_psnr(frames, reference).item() == math.inf
    assert math.isfinite(psnr(frames, reference).item())
    frames = reference.clone()
    frames[0, :2, 2:6, 2:6] = 245
    # A quarter of the 4 x 32 moving pixels is off by 10.
    expected = 10 * math.log10(255**2 / (100 / 4))
    assert moving_psnr(frames, reference).item() == pytest.approx(expected, abs=1e-4)


def test_moving_psnr_of_a_still_clip_is_not_a_number() -> None:
    assert math.isnan(moving_psnr(flat(1, 1, 3, 8, 8), flat(2, 1, 3, 8, 8)).item())


def test_image_statistics() -> None:
    frames = torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8)
    frames[..., 0], frames[..., 1] = 204, 102
    assert brightness(frames).item() == pytest.approx((204 + 102) / 3 / 255)
    assert saturation(frames).item() == pytest.approx(1.0)
    assert saturation(flat(77, 1, 2, 8, 8)).item() == 0
    assert sharpness(frames).item() == 0
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 255
    checks = board.to(torch.uint8)[None, None, ..., None].expand(1, 1, 8, 8, 3)
    # The Laplacian of a checkerboard is +4 and -4 in equal parts: its variance is 16.
    assert sharpness(checks).item() == pytest.approx(16.0)
