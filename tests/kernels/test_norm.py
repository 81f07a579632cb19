import pytest
import torch
import torch.nn.functional as F

from helios.kernels import gated_add, layer_norm, modulated_norm, rms_norm

DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def by_token(rows, length, split):
    """The table with one row per token that the kernels never make."""
    return torch.stack([rows[:, 0 if i < split else 1] for i in range(length)], dim=1)


def test_rms_norm_has_unit_mean_square_and_ignores_the_size_of_its_input():
    x = draw(2, 5, 12)
    out = rms_norm(x, torch.ones(12), 1e-12)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, 5))
    torch.testing.assert_close(rms_norm(1000 * x, torch.ones(12), 1e-12), out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_equals_torch(dtype):
    x, weight = draw(3, 7, 24, dtype=dtype), draw(24, dtype=dtype, seed=1)
    assert torch.equal(rms_norm(x, weight, 1e-6), F.rms_norm(x, (24,), weight, 1e-6))


def test_rms_norm_rounds_once():
    x, weight = draw(4, 64, dtype=torch.bfloat16), draw(64, dtype=torch.bfloat16, seed=1)
    exact = rms_norm(x.double().float(), weight.float(), 1e-6)
    assert torch.equal(rms_norm(x, weight, 1e-6), exact.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_is_the_formula(dtype):
    x, weight, bias = draw(2, 6, 20, dtype=dtype), draw(20, seed=1), draw(20, seed=2)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    out = layer_norm(x, weight, bias, 1e-5)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [0, 3, 8])
def test_modulation_gives_each_token_the_row_of_its_part(dtype, split):
    x = draw(2, 8, 16, dtype=dtype)
    shift, scale = draw(2, 2, 16, seed=1), draw(2, 2, 16, seed=2)
    table = [by_token(rows, 8, split) for rows in (shift, scale)]
    expected = F.layer_norm(x.float(), (16,), eps=1e-6) * (1 + table[1]) + table[0]
    out = modulated_norm(x, shift, scale, split, 1e-6)
    assert torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [0, 3, 8])
def test_gated_add_gives_each_token_the_gate_of_its_part(dtype, split):
    x, update = draw(2, 8, 16, dtype=dtype), draw(2, 8, 16, dtype=dtype, seed=1)
    gate = draw(2, 2, 16, seed=2)
    expected = (x.float() + update.float() * by_token(gate, 8, split)).to(dtype)
    assert torch.equal(gated_add(x, update, gate, split), expected)


def test_gradients_of_the_rows_are_sums_over_their_tokens():
    x, update = draw(2, 7, 12).requires_grad_(), draw(2, 7, 12, seed=1).requires_grad_()
    rows = [draw(2, 2, 12, seed=seed).requires_grad_() for seed in (2, 3, 4)]
    weights = draw(2, 7, 12, seed=5)
    inputs = (x, update, *rows)

    out = gated_add(modulated_norm(x, rows[0], rows[1], 3, 1e-6), update, rows[2], 3)
    ours = torch.autograd.grad((out * weights).sum(), inputs)

    shift, scale, gate = (by_token(row, 7, 3) for row in rows)
    plain = F.layer_norm(x, (12,), eps=1e-6) * (1 + scale) + shift + update * gate
    for mine, theirs in zip(ours, torch.autograd.grad((plain * weights).sum(), inputs)):
        torch.testing.assert_close(mine, theirs)
