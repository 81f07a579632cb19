"""Every Triton kernel against its plain form: interpreted on a CPU, compiled on a GPU.

Runs in a process of its own (see test_triton.py); by hand, on a machine with a GPU or with
TRITON_INTERPRET=1: ``python -m pytest tests/kernels/triton_forms.py``.
"""

import os
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from helios import kernels
from helios.kernels import Machine, Scaled
from helios.kernels.gelu import plain_gelu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EXACT = 2e-6 if INTERPRETED else 1e-5
"""In float32; a GPU approximates roots, quotients and exponentials in the last bits."""

NUMPY = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn}


def convert(data, source, target, _rounding):
    """Rounded to nearest as the hardware does; the interpreter cuts bfloat16 off instead."""
    kinds = [NUMPY[str(kind)] for kind in (source, target)]
    bits = {2: torch.uint16, 1: torch.uint8, 4: torch.float32}
    held = torch.from_numpy(np.ascontiguousarray(data))
    made = held.view(kinds[0]).to(kinds[1])
    return made.view(bits[made.itemsize]).numpy()


@pytest.fixture(autouse=True)
def _rounding(monkeypatch):
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter, "_convert_float", convert)


MACHINE = Machine(capability=(9, 0), triton=True)
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 7, 24, 3), (2, 5, 40, 0), (2, 6, 96, 6), (1, 9, 128, 4)]
EPS = 1e-6


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def rows(batch, width, count, seed=10):
    """Modulation vectors as the model has them: views of one table."""
    return draw(batch, 2, count, width, seed=seed).unbind(dim=2)


def chosen():
    """Makes the Triton forms run where they would not by themselves."""
    return kernels.simulated(MACHINE) if INTERPRETED else nullcontext()


def both(operation):
    """What the Triton form and the plain form make of the same inputs."""
    with chosen():
        fast = operation()
    with kernels.plain():
        formula = operation()
    return fast, formula


def compare(fast, formula):
    if isinstance(formula, tuple):
        assert len(fast) == len(formula)
        for one, other in zip(fast, formula):
            compare(one, other)
    elif isinstance(formula, Scaled):
        torch.testing.assert_close(fast.scale, formula.scale, rtol=1e-5, atol=0)
        close_e4m3(fast.values, formula.values)
    elif formula.dtype == torch.float8_e4m3fn:
        close_e4m3(fast, formula)
    else:
        assert fast.dtype == formula.dtype
        assert fast.shape == formula.shape
        # A number on the border between two of bfloat16 may fall to either side.
        tolerance = EXACT if formula.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(fast, formula, rtol=tolerance, atol=tolerance)


def close_e4m3(fast, formula):
    """Equal but for the few numbers on a border, which are neighbours."""
    one, other = fast.float(), formula.float()
    assert one.shape == other.shape
    differ = one != other
    assert differ.float().mean() <= 0.02
    torch.testing.assert_close(one, other, rtol=0.13, atol=2**-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "width", "split"), SHAPES)
def test_norms(batch, length, width, split, dtype):
    x, weight = draw(batch, length, width, dtype=dtype), draw(width, seed=1)
    bias, (shift, scale) = draw(width, seed=2), rows(batch, width, 2)
    compare(*both(lambda: kernels.rms_norm(x, weight.to(dtype), EPS)))
    compare(*both(lambda: kernels.layer_norm(x, weight, bias, EPS)))
    for fp8 in (False, True):
        compare(*both(lambda fp8=fp8: kernels.modulated_norm(x, shift, scale, split, EPS, fp8=fp8)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "width", "split"), SHAPES)
def test_sums_and_norms(batch, length, width, split, dtype):
    x, update = (draw(batch, length, width, dtype=dtype, seed=seed) for seed in (0, 1))
    gate, shift, scale = rows(batch, width, 3)
    weight, bias = draw(width, seed=2), draw(width, seed=3)
    compare(*both(lambda: kernels.gated_add(x, update, gate, split)))
    for fp8 in (False, True):
        for start in {0, split}:
            if start == length:
                continue
            affine = (weight, bias, start, EPS)
            compare(
                *both(
                    lambda affine=affine, fp8=fp8: kernels.gated_add_layer_norm(
                        x, update, gate, split, *affine, fp8=fp8
                    )
                )
            )
            late = update[:, start:]
            compare(
                *both(
                    lambda late=late, start=start, fp8=fp8: kernels.text_add_modulated_norm(
                        x.clone(), late, start, shift, scale, split, EPS, fp8=fp8
                    )
                )
            )
        compare(
            *both(
                lambda fp8=fp8: kernels.gated_add_modulated_norm(
                    x, update, gate, shift, scale, split, EPS, fp8=fp8
                )
            )
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "width", "split"), SHAPES)
def test_a_stream_of_sums(batch, length, width, split, dtype):
    x, update, last = (draw(batch, length, width, dtype=dtype, seed=seed) for seed in (0, 1, 2))
    gate1, gate2, shift, scale = rows(batch, width, 4)
    weight, bias = draw(width, seed=4), draw(width, seed=5)
    for start in {0, split} - {length}:
        stream = kernels.Stream(x=x, update=update, gate=gate1, split=split, start=start)
        read = draw(batch, length - start, width, dtype=dtype, seed=3)
        for fp8 in (False, True):
            compare(*both(lambda s=stream, e=fp8: s.text_norm(weight, bias, EPS, fp8=e)))
            compare(
                *both(lambda s=stream, r=read, e=fp8: s.modulated_norm(r, shift, scale, EPS, fp8=e))
            )
        compare(*both(lambda s=stream, r=read: s.total(r, last, gate2)))


def test_a_stream_is_rounded_once():
    x, update, read, last = (draw(1, 6, 64, dtype=torch.bfloat16, seed=seed) for seed in range(4))
    gate1, gate2 = rows(1, 64, 2)
    stream = kernels.Stream(x=x[:, 2:], update=update[:, 2:], gate=gate1, split=0, start=0)
    made = both(lambda: stream.total(read[:, 2:], last[:, 2:], gate2))
    exact = (
        x.double() + update.double() * gate1[:, 1:] + read.double() + last.double() * gate2[:, 1:]
    )
    for total in made:
        assert (total != exact[:, 2:].bfloat16()).float().mean() < 0.01


@pytest.mark.parametrize("tokens", [2, 4])
@pytest.mark.parametrize(("length", "split"), [(7, 3), (9, 0), (5, 5), (8, 1)])
def test_programs_that_take_several_tokens(length, split, tokens, monkeypatch):
    """As at full size; the last program of a part has fewer, and no part reads another's."""
    from helios.kernels import norm_triton, rope_triton, stream_triton

    for module in (norm_triton, rope_triton, stream_triton):
        monkeypatch.setattr(module, "tokens_for", lambda _: tokens)
    x, update, last = (draw(2, length, 24, seed=seed) for seed in (0, 1, 2))
    read, (gate1, gate2, shift, scale) = draw(2, length, 24, seed=3), rows(2, 24, 4)
    stream = kernels.Stream(x=x, update=update, gate=gate1, split=split, start=0)
    compare(*both(lambda: stream.modulated_norm(read, shift, scale, EPS)))
    compare(*both(lambda: stream.total(read, last, gate2)))
    affine = (draw(24, seed=4), draw(24, seed=5), 0, EPS)
    compare(*both(lambda: kernels.gated_add_layer_norm(x, update, gate1, split, *affine)))
    angles = draw(length, 4, seed=6)
    tables = (angles.cos(), angles.sin())
    compare(*both(lambda: kernels.norm_rope(x, draw(24, seed=7), *tables, EPS)))


def test_tokens_that_are_views():
    """Slices of a longer sequence, as in the last block; vectors as expanded as the head's."""
    x, update = draw(2, 9, 24), draw(2, 6, 24, seed=1)
    shift, scale, gate = (part.expand(-1, 2, -1) for part in draw(2, 3, 24, seed=2).split(1, 1))
    compare(*both(lambda: kernels.modulated_norm(x[:, 3:], shift, scale, 0, EPS)))
    compare(*both(lambda: kernels.gated_add(x[:, 3:], update, gate, 0)))
    compare(*both(lambda: kernels.rms_norm(x[:, 3:], draw(24, seed=3), EPS)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "channels"), [(2, 12), (3, 16), (4, 8)])
@pytest.mark.parametrize("shared", [True, False])
def test_norm_and_rotation(heads, channels, shared, dtype):
    joined = draw(2, 7, 3 * heads * channels, dtype=dtype)
    x = joined[..., heads * channels : 2 * heads * channels]
    weight = draw(heads * channels, dtype=dtype, seed=1)
    angles = draw(7, channels // 2, seed=2) if shared else draw(2, 7, channels // 2, seed=2)
    tables = (angles.cos(), angles.sin())
    compare(*both(lambda: kernels.norm_rope(x, weight, *tables, EPS)))
    factor = kernels.bound_factor(weight, heads)
    compare(*both(lambda: kernels.norm_rope_e4m3(x, weight, *tables, EPS, factor)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 200, 2500])
def test_gelu_and_rows(width, dtype):
    x, bias = 3 * draw(2, 3, width, dtype=dtype), draw(width, dtype=dtype, seed=1)
    for added in (None, bias):
        compare(*both(lambda added=added: kernels.gelu(x, added)))
        compare(*both(lambda added=added: kernels.gelu(x, added, fp8=True)))
    compare(*both(lambda: kernels.quantise_rows(x)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads(dtype):
    joined = draw(2, 70, 3 * 36, dtype=dtype)
    value = joined[..., 72:].unflatten(-1, (3, 12))
    compare(*both(lambda: kernels.quantise_heads(value)))
    compare(*both(lambda: kernels.quantise_centred(value)))
    zeros = torch.zeros(1, 5, 2, 8, dtype=dtype, device=DEVICE)
    (values, scale), _ = both(lambda: kernels.quantise_heads(zeros))
    assert not values.float().any()
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 2100])
def test_centred_values_at_lengths_that_fill_no_block(length):
    """More groups than are put together at once, a last group of one token, channels to spare."""
    value = 3 + draw(2, length, 3, 12, seed=length)
    compare(*both(lambda: kernels.quantise_centred(value)))
    (_, fast), _ = both(lambda: kernels.quantise_centred(value))
    expected = value.double().mean(dim=1).float()
    torch.testing.assert_close(fast, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 5, 24), (3, 7, 200)])
def test_rows_with_an_offset_for_every_sample(batch, length, width, dtype):
    x, offset = draw(batch, length, width, dtype=dtype), 2 * draw(batch, width, seed=1)
    compare(*both(lambda: kernels.quantise_rows(x, offset)))


def test_a_row_of_zeros_stays_one():
    fast, _ = both(lambda: kernels.quantise_rows(torch.zeros(2, 16, device=DEVICE)))
    assert not fast.dense().any()


def gradients(operation, inputs, dtype):
    outs = operation(*inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    seeds = [draw(*out.shape, dtype=dtype, seed=50 + i) for i, out in enumerate(outs)]
    return torch.autograd.grad(outs, inputs, seeds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype):
    x, update = (draw(2, 6, 24, dtype=dtype, seed=seed).requires_grad_() for seed in (0, 1))
    gate, shift, scale = (row.clone().requires_grad_() for row in rows(2, 24, 3))
    weight, bias = (draw(24, seed=seed).requires_grad_() for seed in (2, 3))
    angles = draw(6, 4, seed=4)
    tables = (angles.cos(), angles.sin())
    cases = [
        (lambda a, w: kernels.rms_norm(a, w, EPS), (x, weight)),
        (lambda a, w, b: kernels.layer_norm(a, w, b, EPS), (x, weight, bias)),
        (lambda a, s, t: kernels.modulated_norm(a, s, t, 2, EPS), (x, shift, scale)),
        (lambda a, u, g: kernels.gated_add(a, u, g, 2), (x, update, gate)),
        (
            lambda a, u, g, w, b: kernels.gated_add_layer_norm(a, u, g, 2, w, b, 2, EPS),
            (x, update, gate, weight, bias),
        ),
        (
            lambda a, u, g, s, t: kernels.gated_add_modulated_norm(a, u, g, s, t, 2, EPS),
            (x, update, gate, shift, scale),
        ),
        (
            lambda a, u, s, t: kernels.text_add_modulated_norm(a, u[:, 2:], 2, s, t, 2, EPS),
            (x, update, shift, scale),
        ),
        (lambda a, w: kernels.norm_rope(a, w, *tables, EPS), (x, weight)),
        (lambda a, b: kernels.gelu(a, b), (x, bias.detach().to(dtype).requires_grad_())),
    ]
    for operation, inputs in cases:
        fast, formula = both(lambda o=operation, i=inputs: gradients(o, i, dtype))
        for one, other in zip(fast, formula):
            torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)


def test_only_the_gradients_that_are_wanted():
    x, weight = draw(3, 8), draw(8, seed=1).requires_grad_()
    with chosen():
        out = kernels.rms_norm(x, weight, EPS)
    (found,) = torch.autograd.grad(out.sum(), weight)
    (expected,) = torch.autograd.grad(kernels.rms_norm(x, weight, EPS).sum(), weight)
    torch.testing.assert_close(found, expected)


def test_the_transformer_runs_on_them():
    """Every kernel where the model calls it, against the plain model."""
    from tests.model.cases import build, inputs

    model = build().to(DEVICE)
    *tensors, window = inputs(model.config, size=(2, 2), history=(4, 4))
    batch = (*(tensor.to(DEVICE) for tensor in tensors), window.to(DEVICE))
    with torch.no_grad():
        fast, formula = both(lambda: model(*batch))
    torch.testing.assert_close(fast, formula, rtol=1e-4, atol=1e-5)
    assert not torch.equal(fast, formula)


def test_rounding_late_costs_less_than_the_published_roundings():
    """Both in bfloat16, against the same weights in float32."""
    from helios.model import cast
    from tests.model.cases import build, inputs

    model = cast(build(num_layers=12), torch.bfloat16).to(DEVICE)
    *tensors, window = inputs(model.config, size=(2, 2), history=(4, 4), dtype=torch.bfloat16)
    batch = (*(tensor.to(DEVICE) for tensor in tensors), window.to(DEVICE))
    with torch.no_grad():
        late, published = both(lambda: model(*batch))
        cast(model, torch.float32)
        wide = (t.float() if t.dtype == torch.bfloat16 else t for t in batch[:-1])
        with kernels.plain():
            exact = model(*wide, window.to(DEVICE).to(dtype=torch.float32))
    errors = [float((out.float() - exact).norm() / exact.norm()) for out in (late, published)]
    assert 0 < errors[0] < 0.85 * errors[1]


def test_tanh_and_logistic_forms_of_gelu_agree():
    x = torch.linspace(-20, 20, 4001, device=DEVICE)[None]
    with chosen():
        fast = kernels.gelu(x)
    torch.testing.assert_close(fast, plain_gelu(x, None), rtol=1e-5, atol=1e-6)
