import pytest
import torch
import torch.nn.functional as F

from helios.kernels import (
    Machine,
    Scaled,
    gelu,
    linear,
    linear_gelu,
    product_error,
    quantise_rows,
    side_by_side,
)
from helios.kernels.dispatch import simulated


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_rows_fill_e4m3_and_keep_a_sixteenth():
    x = draw(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    rows = quantise_rows(x)
    assert rows.values.dtype == torch.float8_e4m3fn
    assert (rows.values.float().abs().amax(1) == 448).all()
    error = (rows.dense() - x).abs()
    # Half of the last of 3 mantissa bits, and half of the smallest number of all near zero.
    assert (error <= x.abs() / 16 + rows.scale * 2**-10 * 1.001).all()


def test_numbers_that_e4m3_holds_come_back():
    x = torch.tensor([[448.0, -224.0, 1.5, 0.0], [1.75, 0.875, -0.0625, 0.0]])
    assert torch.equal(quantise_rows(x).dense(), x)
    assert not quantise_rows(torch.zeros(2, 4)).dense().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_of_e4m3_numbers_is_that_of_what_they_stand_for(dtype):
    x, weight, bias = draw(2, 5, 32), draw(16, 32, seed=1), draw(16, seed=2).to(dtype)
    left, right = quantise_rows(x), quantise_rows(weight)
    expected = F.linear(left.dense(torch.float64), right.dense(torch.float64), bias.double())
    out = linear(left, right, bias)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(linear(x, right, bias.float()), linear(left, right, bias.float()))


def test_products_by_one_name():
    x, weight, bias = draw(3, 32), draw(16, 32, seed=1), draw(16, seed=2)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    left = quantise_rows(x)
    assert torch.equal(linear(left, weight), F.linear(left.dense(), weight))
    assert linear(left, quantise_rows(weight)).dtype == torch.bfloat16


def test_the_error_of_gaussians_is_the_known_one():
    """One product of Gaussian e4m3 numbers is 3.7 % off (performance, section 5)."""
    error = product_error(draw(256, 512), draw(256, 512, seed=1))
    assert error == pytest.approx(0.037, abs=0.003)


def test_no_gradient_through_e4m3():
    weight = quantise_rows(draw(16, 32))
    with pytest.raises(ValueError, match="no_grad"):
        linear(draw(3, 32).requires_grad_(), weight)


def test_linear_gelu_is_both():
    x, weight, bias = draw(3, 32), draw(16, 32, seed=1), draw(16, seed=2)
    expected = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    assert torch.equal(linear_gelu(x, weight, bias), expected)
    rows = linear_gelu(x, weight, bias, fp8=True)
    torch.testing.assert_close(rows.dense(), expected, rtol=1 / 16, atol=1e-3)
    torch.testing.assert_close(
        gelu(x, draw(32, seed=3)), F.gelu(x + draw(32, seed=3), approximate="tanh")
    )


def test_tokens_of_scaled_rows():
    rows = quantise_rows(draw(2, 6, 8))
    late = rows.tokens(4)
    assert late.shape == (2, 2, 8)
    assert torch.equal(late.dense(), rows.dense()[:, 4:])


def test_neighbours_in_memory_are_one_matrix():
    whole = draw(12, 4)
    parts = whole.split((5, 3, 4))
    assert torch.equal(side_by_side(parts), whole)
    assert side_by_side(parts).data_ptr() == whole.data_ptr()
    assert side_by_side([parts[0], parts[2]]) is None
    assert side_by_side([parts[1], parts[0]]) is None
    assert side_by_side([parts[0], parts[1].clone()]) is None
    assert side_by_side([whole[:, :2], whole[:, 2:]]) is None
    assert side_by_side([whole]) is not None


class Called(Exception):  # noqa: N818 - what the library was asked for
    pass


@pytest.mark.parametrize(
    ("capability", "shape", "in_hardware"),
    [
        ((8, 0), (16, 32), False),
        ((8, 9), (16, 32), True),
        ((9, 0), (16, 32), True),
        ((10, 0), (16, 32), True),
        ((9, 0), (24, 32), False),
    ],
)
def test_where_products_run_in_hardware(capability, shape, in_hardware, monkeypatch):
    import sys

    module = sys.modules["helios.kernels.linear"]
    monkeypatch.setattr(module, "is_fast", lambda _: True)
    asked = []

    def product(a, b, **options):
        asked.append(options)
        assert a.is_contiguous()
        assert b.stride() == (1, shape[1])
        assert options["scale_a"].shape == (6, 1)
        assert options["scale_b"].shape == (1, shape[0])
        return torch.zeros(len(a), b.shape[1], dtype=torch.bfloat16)

    monkeypatch.setattr(torch, "_scaled_mm", product)
    x, weight = draw(2, 3, shape[1], dtype=torch.bfloat16), quantise_rows(draw(*shape))
    with simulated(Machine(capability=capability)):
        out = linear(x, weight, draw(shape[0], dtype=torch.bfloat16))
    assert out.shape == (2, 3, shape[0])
    assert bool(asked) is in_hardware


def test_a_scaled_matrix_says_its_shape():
    rows = Scaled(torch.zeros(2, 3, 4).to(torch.float8_e4m3fn), torch.ones(2, 3, 1))
    assert rows.shape == (2, 3, 4)
    assert rows.dense(torch.bfloat16).dtype == torch.bfloat16
