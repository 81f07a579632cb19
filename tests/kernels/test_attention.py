import sys
import types

import pytest
import torch

from helios.kernels import (
    Machine,
    attention,
    attention_e4m3,
    bound_factor,
    norm_rope,
    norm_rope_e4m3,
    quantise_centred,
    quantise_heads,
    simulated,
)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_the_formula():
    q, k, v = draw(2, 5, 3, 8, seed=0), draw(2, 7, 3, 8, seed=1), draw(2, 7, 3, 8, seed=2)
    logits = torch.einsum("blhd,bmhd->bhlm", q, k) / 8**0.5
    expected = torch.einsum("bhlm,bmhd->blhd", logits.softmax(-1), v)
    torch.testing.assert_close(attention(q, k, v), expected)


def test_equal_keys_give_the_mean_value():
    q, v = draw(1, 4, 2, 6, seed=0), draw(1, 5, 2, 6, seed=1)
    out = attention(q, torch.ones(1, 5, 2, 6), v)
    torch.testing.assert_close(out, v.mean(1, keepdim=True).expand(1, 4, 2, 6))


def test_order_of_keys_does_not_matter():
    q, k, v = draw(1, 4, 2, 6, seed=0), draw(1, 9, 2, 6, seed=1), draw(1, 9, 2, 6, seed=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(attention(q, k[:, order], v[:, order]), attention(q, k, v))


def test_heads_in_e4m3_fill_it():
    x = draw(2, 9, 3, 8, seed=0) * torch.tensor([1e-3, 1.0, 1e3])[:, None]
    values, scale = quantise_heads(x)
    assert values.dtype == torch.float8_e4m3fn
    assert (values.float().abs().amax((1, 3)) == 448).all()
    dense = values.float() * scale[:, None, :, None]
    assert ((dense - x).abs() <= x.abs() / 16 + scale[:, None, :, None] * 2**-9).all()


def test_attention_of_e4m3_heads_is_near_and_each_scale_counts():
    q, k, v = (draw(2, length, 3, 16, seed=length) for length in (5, 7, 7))
    exact = attention(q, k, v)
    heads = [quantise_heads(x) for x in (q, k, v)]
    out = attention_e4m3(*heads)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).norm() / exact.norm() < 0.08
    doubled = [heads[0], heads[1], (heads[2][0], 2 * heads[2][1])]
    torch.testing.assert_close(attention_e4m3(*doubled), 2 * out)


def test_centred_values_and_their_mean_are_the_values():
    v = draw(2, 9, 3, 8, seed=0) + 5 * draw(2, 1, 3, 8, seed=1)
    (values, scale), mean = quantise_centred(v)
    torch.testing.assert_close(mean, v.mean(dim=1))
    dense = values.float() * scale[:, None, :, None]
    assert (dense + mean[:, None] - v).norm() < 0.04 * (v - mean[:, None]).norm()


def test_attention_to_centred_values_is_attention():
    """Nearer than without centring, for what all values share is not rounded."""
    q, k = (draw(2, length, 3, 16, seed=length) for length in (5, 40))
    v = draw(2, 40, 3, 16, seed=1) + 3 * draw(2, 1, 3, 16, seed=2)
    exact = attention(q, k, v)
    heads = [quantise_heads(x) for x in (q, k)]

    def error(out):
        return float((out.float() - exact).norm() / exact.norm())

    usual = error(attention_e4m3(*heads, quantise_heads(v)))
    centred = error(attention_e4m3(*heads, *quantise_centred(v)))
    assert centred < 0.7 * usual


def summed_in_14_bits(weights, values):
    """``weights @ values`` as Hopper sums e4m3 products: 32 at a time, all of them cut off 13 bits
    below the largest of the products and of the sum so far."""
    total = torch.zeros(len(weights), values.shape[1])
    for first in range(0, values.shape[0], 32):
        products = weights[:, first : first + 32, None] * values[None, first : first + 32]
        largest = torch.maximum(products.abs().amax(dim=1), total.abs()).clamp(min=1e-30)
        unit = torch.exp2(torch.floor(torch.log2(largest)) - 13)
        cut = torch.trunc(products / unit[:, None]) * unit[:, None]
        total = cut.sum(dim=1) + torch.trunc(total / unit) * unit
    return total


def test_centring_is_what_a_long_sum_in_hopper_needs():
    """With 8000 keys, what values share is cut off by an eighth; centred, nothing is lost."""
    v = 0.6 * draw(1, 1, 1, 16, seed=0) + 0.8 * draw(1, 8000, 1, 16, seed=1)
    weights = torch.exp(draw(4, 8000, seed=2) - 4) * 256
    exact = weights.double() @ v[0, :, 0].double() / weights.double().sum(1, keepdim=True)

    def error(values, scale, mean):
        found = summed_in_14_bits(weights, values[0, :, 0].float()) * scale.item()
        found = found / weights.sum(1, keepdim=True) + mean
        return float((found - exact).norm() / exact.norm())

    (values, scale), mean = quantise_centred(v)
    assert error(values, scale, mean[0]) < 0.005
    assert error(*quantise_heads(v), 0.0) > 0.05


def test_bounded_heads_never_leave_e4m3():
    """The worst case of the norm, all of a token in one channel, comes just to the border."""
    weight = draw(48, seed=0)
    factor = bound_factor(weight, 3)
    x = torch.zeros(1, 48, 48)
    x[0].fill_diagonal_(100.0)
    angles = draw(48, 8, seed=1)
    turned = norm_rope(x, weight, angles.cos(), angles.sin(), 1e-6) * factor[:, None]
    assert turned.abs().max() <= 448.001
    flat = norm_rope(x, weight, torch.ones(48, 8), torch.zeros(48, 8), 1e-6) * factor[:, None]
    assert flat.abs().amax((0, 1, 3)).tolist() == pytest.approx([448.0] * 3, rel=1e-4)
    usual = norm_rope(draw(1, 48, 48, seed=2), torch.ones(48), angles.cos(), angles.sin(), 1e-6)
    kept = norm_rope_e4m3(
        draw(1, 48, 48, seed=2), torch.ones(48), angles.cos(), angles.sin(), 1e-6,
        bound_factor(torch.ones(48), 3),
    )  # fmt: skip
    dense = kept.float() / bound_factor(torch.ones(48), 3)[:, None]
    assert (dense - usual).norm() / usual.norm() < 0.04


@pytest.mark.parametrize("name", ["fa3_fwd_interface", "flash_attn_interface"])
@pytest.mark.parametrize("pair", [False, True])
def test_flash3_by_either_of_its_names(name, pair, monkeypatch):
    calls = []

    def flash(q, k, v, **scales):
        calls.append(scales)
        out = torch.zeros(q.shape, dtype=torch.bfloat16)
        return (out, None) if pair else out

    module = sys.modules["helios.kernels.attention"]
    stand_in = types.SimpleNamespace(flash_attn_func=flash)
    for other in ("fa3_fwd_interface", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, other, stand_in if other == name else None)
    module._flash3.cache_clear()
    x = draw(2, 5, 3, 8, seed=0)
    assert attention(x, x, x, backend="flash3").shape == x.shape
    monkeypatch.setattr(module, "is_fast", lambda _: True)
    with simulated(Machine(capability=(9, 0), flash3=True)):
        mean = draw(2, 3, 8, seed=1)
        out = attention_e4m3(*[quantise_heads(x)] * 3, mean)
    # The stand-in gives zeros.
    torch.testing.assert_close(out, mean[:, None].bfloat16().expand_as(out))
    assert calls[0] == {}
    assert {k: v.shape for k, v in calls[1].items()} == dict.fromkeys(
        ("q_descale", "k_descale", "v_descale"), (2, 3)
    )
    module._flash3.cache_clear()
