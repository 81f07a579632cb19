import math
from itertools import pairwise

import pytest
import torch

from helios.evaluation.metrics.colour import delta_e, frame_lab

# Pairs published with the formula (Sharma, Wu, Dalal 2005, table 1).
PUBLISHED = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0009), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0011), 7.2195),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "expected"), PUBLISHED)
def test_published_differences(first, second, expected) -> None:
    one, two = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    assert delta_e(one, two).item() == pytest.approx(expected, abs=1e-4)
    assert delta_e(two, one).item() == pytest.approx(expected, abs=1e-4)


def test_lab_of_known_colours() -> None:
    colours = torch.tensor([[255, 255, 255], [0, 0, 0], [255, 0, 0], [119, 119, 119]])
    frames = colours.byte()[:, None, None, None].expand(4, 1, 2, 3, 3)
    lab = frame_lab(frames)[:, 0]
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [50.03, 0, 0]]
    torch.testing.assert_close(lab, torch.tensor(known), atol=0.02, rtol=0)


def test_the_mean_colour_is_that_of_the_light() -> None:
    frames = torch.zeros(1, 2, 4, 3, dtype=torch.uint8)
    frames[:, :, ::2] = 255
    # Half of the light is L* 76, not the 54 that half of the levels would give.
    assert frame_lab(frames)[0, 0].item() == pytest.approx(76.07, abs=0.01)


def test_a_growing_cast_is_a_growing_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(60, 200, (1, 16, 16, 3), generator=generator).byte()
    plain = frame_lab(frame)
    apart = []
    for cast in (0, 4, 8, 16, 32):
        warm = frame.clone()
        warm[..., 0] += cast
        apart.append(delta_e(plain, frame_lab(warm)).item())
    assert apart[0] == 0
    assert all(later > earlier + 0.5 for earlier, later in pairwise(apart))
    assert math.isfinite(apart[-1])


def test_other_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        frame_lab(torch.zeros(1, 2, 2, 3))
