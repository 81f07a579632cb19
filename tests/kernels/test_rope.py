import math

import pytest
import torch

from helios.kernels import apply_rope
from helios.kernels.rope import _turn_complex, _turn_pairs


def tables(length, half, seed=0):
    angles = 20 * torch.rand(length, half, generator=torch.Generator().manual_seed(seed))
    return angles.cos(), angles.sin()


def test_a_quarter_turn_sends_even_to_odd():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    angle = torch.full((1, 2), math.pi / 2)
    expected = torch.tensor([0.0, 1.0, -1.0, 0.0]).view(1, 1, 1, 4)
    torch.testing.assert_close(apply_rope(x, angle.cos(), angle.sin()), expected)


def test_products_depend_on_the_difference_of_places_only():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    frequencies = torch.tensor([[1.0, 0.5, 0.2, 0.01]])

    def product(place_q, place_k):
        turned = [
            apply_rope(x, (place * frequencies).cos(), (place * frequencies).sin())
            for x, place in ((q, place_q), (k, place_k))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3, 10), product(20, 27))
    assert not torch.isclose(product(3, 10), product(3, 11))


def test_a_shrunken_pair_shrinks_the_vector():
    x = torch.randn(1, 5, 2, 6, generator=torch.Generator().manual_seed(0))
    cos, sin = tables(5, 3)
    out = apply_rope(x, 0.5 * cos, 0.5 * sin)
    torch.testing.assert_close(out.norm(dim=-1), 0.5 * x.norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_agree_gradients_included(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 3, 10, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(2, 9, 3, 10, generator=generator).to(dtype)
    cos, sin = tables(9, 5)
    results = []
    for form in (_turn_pairs, _turn_complex):
        out = form(x, cos, sin)
        assert out.dtype == dtype
        assert out.shape == x.shape
        results.append((out, *torch.autograd.grad((out * weights).sum(), x)))
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_half_precision_is_rounded_once():
    x = torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = tables(6, 4)
    assert torch.equal(apply_rope(x, cos, sin), apply_rope(x.float(), cos, sin).bfloat16())
