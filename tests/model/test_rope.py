import pytest
import torch

from helios.model.rope import rotary_tables

CPU = torch.device("cpu")
PUBLISHED = (44, 42, 42)


def parts(chunk, history, rope_dim=PUBLISHED):
    """Tables cut into long, mid, short and noisy."""
    cos, sin = rotary_tables(rope_dim, 10000.0, chunk, history, CPU)
    rows, columns = history
    sizes = [
        4 * -(-rows // 4) * -(-columns // 4),
        -(-rows // 2) * -(-columns // 2),
        2 * rows * columns,
        chunk[0] * chunk[1] * chunk[2],
    ]
    assert cos.shape == sin.shape == (sum(sizes), sum(rope_dim) // 2)
    assert cos.dtype == torch.float32
    return list(zip(cos.split(sizes), sin.split(sizes)))


def angle(t, y, x, rope_dim=PUBLISHED):
    """Angles of one place, in double precision."""
    out = []
    for size, place in zip(rope_dim, (t, y, x)):
        steps = torch.arange(size // 2, dtype=torch.float64)
        out.append(place * 10000.0 ** (-2 * steps / size))
    return torch.cat(out)


@pytest.mark.parametrize("frame", [0, 4, 8])
def test_noisy_tokens_sit_on_their_own_grid(frame):
    _, _, _, (cos, sin) = parts((9, 3, 5), (12, 20))
    for y, x in ((0, 0), (1, 4), (2, 3)):
        expected = angle(20 + frame, y, x)
        index = (frame * 3 + y) * 5 + x
        torch.testing.assert_close(cos[index].double(), expected.cos(), rtol=0, atol=1e-5)
        torch.testing.assert_close(sin[index].double(), expected.sin(), rtol=0, atol=1e-5)


def test_short_tokens_are_the_anchor_and_the_last_frame():
    _, _, (cos, _), _ = parts((9, 3, 5), (6, 10))
    for frame, place in enumerate((0, 19)):
        index = (frame * 6 + 2) * 10 + 7
        expected = angle(place, 2, 7).cos()
        torch.testing.assert_close(cos[index].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("stream", "window", "first"), [(0, 4, 1), (1, 2, 17)])
def test_older_tokens_are_means_over_the_cells_they_cover(stream, window, first):
    rows, columns = 7, 9  # neither divides: the far ends are repeated
    cos, sin = parts((9, 2, 2), (rows, columns))[stream]
    y_tokens, x_tokens = -(-rows // window), -(-columns // window)
    for y, x in ((0, 0), (y_tokens - 1, x_tokens - 1), (0, x_tokens - 1)):
        cells = [
            angle(first + t, min(window * y + i, rows - 1), min(window * x + j, columns - 1))
            for t in range(window)
            for i in range(window)
            for j in range(window)
        ]
        mean = torch.stack([torch.stack((cell.cos(), cell.sin())) for cell in cells]).mean(0)
        index = y * x_tokens + x
        torch.testing.assert_close(cos[index].double(), mean[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(sin[index].double(), mean[1], rtol=0, atol=1e-5)


def test_averaging_shrinks_by_the_known_amounts():
    long, mid, _, _ = parts((9, 24, 40), (24, 40))
    for (cos, sin), expected in (
        (mid, [0.878, 0.946, 0.977]),
        (long, [0.474, 0.749, 0.887, 0.950]),
    ):
        size = (cos[0].square() + sin[0].square()).sqrt()[: len(expected)]
        torch.testing.assert_close(size, torch.tensor(expected), rtol=0, atol=6e-4)


def test_tables_are_made_once_and_can_be_trained_with_after_inference():
    rotary_tables((4, 4, 4), 10000.0, (9, 3, 3), (3, 3), CPU)
    with torch.inference_mode():
        made = rotary_tables((4, 4, 4), 77.0, (9, 3, 3), (3, 3), CPU)
    again = rotary_tables((4, 4, 4), 77.0, (9, 3, 3), (3, 3), CPU)
    assert again[0] is made[0]
    weight = torch.ones(6, requires_grad=True)
    (weight * again[0]).sum().backward()
    assert torch.equal(weight.grad, again[0].sum(0))
