"""Every kernel at the sizes of the 14B model against its plain form, launched and in a graph."""

from functools import partial

import pytest
import torch

from helios import kernels
from helios.codec.decode import PlainOps, fast_ops
from helios.kernels import Scaled, Stream

pytestmark = pytest.mark.gpu

WIDTH, HIDDEN, HEADS, HISTORY, EPS = 5120, 13824, 40, 2400, 1e-6
LENGTHS = (2940, 4560, 11040)
LEVELS = ((9, 48, 80, 384), (17, 96, 160, 384), (33, 192, 320, 192), (33, 384, 640, 96))
"""Frames, rows, columns and channels of the decoder's pictures."""


def draw(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)


def dense(out):
    """All tensors of a result in float32, numbers with their scales multiplied."""
    if isinstance(out, Scaled):
        return [out.dense()]
    if isinstance(out, tuple) and getattr(out[0], "dtype", None) == kernels.E4M3:
        return [out[0].float() * out[1][:, None, :, None]]
    if isinstance(out, tuple):
        return [one for part in out if part is not None for one in dense(part)]
    return [out.float()]


def farthest(found, expected):
    """The largest relative distance of the tensors of two results."""
    pairs = zip(dense(found), dense(expected), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def cases(length):
    """Every operation of a block at one length, as the engine calls it."""
    wide = partial(draw, dtype=torch.float32)
    x, update, last = (draw(1, length, WIDTH, seed=seed) for seed in (0, 1, 2))
    read = draw(1, length - HISTORY, WIDTH, seed=3)
    gate1, gate2, shift, scale = (0.2 * wide(1, 2, 4, WIDTH, seed=4)).unbind(2)
    gains, offsets = 1 + 0.1 * wide(WIDTH, seed=5), 0.1 * wide(WIDTH, seed=6)
    angles = wide(length, WIDTH // HEADS // 2, seed=7)
    rotation = (angles.cos(), angles.sin())
    query, _, value = draw(1, length, 3 * WIDTH, seed=8).chunk(3, dim=-1)
    factor = kernels.bound_factor(gains, HEADS)
    hidden = draw(1, length, HIDDEN, seed=9)
    whole = Stream(x=x, update=update, gate=gate1, split=HISTORY, start=HISTORY)
    heads = value.unflatten(-1, (HEADS, -1))
    yield "sum", lambda: whole.total(read, last, gate2)
    yield "rms", lambda: kernels.rms_norm(read, gains.bfloat16(), EPS)
    yield "query", lambda: kernels.norm_rope(query, gains.bfloat16(), *rotation, EPS)
    yield "query e4m3", lambda: kernels.norm_rope_e4m3(query, gains, *rotation, EPS, factor)
    yield "heads", lambda: kernels.quantise_heads(heads)
    yield "centred", lambda: kernels.quantise_centred(heads)
    yield "rows", lambda: kernels.quantise_rows(x)
    yield "rows and mean", lambda: kernels.quantise_rows(x, offsets[None])
    for fp8 in (False, True):
        yield (
            f"modulated {fp8}",
            lambda e=fp8: kernels.modulated_norm(x, shift, scale, HISTORY, EPS, fp8=e),
        )
        yield f"text {fp8}", lambda e=fp8: whole.text_norm(gains, offsets, EPS, fp8=e)
        yield (
            f"stream {fp8}",
            lambda e=fp8: whole.modulated_norm(read, shift, scale, EPS, fp8=e),
        )
        yield f"GELU {fp8}", lambda e=fp8: kernels.gelu(hidden, fp8=e)


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
def test_operations_of_a_block(length):
    far = {}
    for name, call in cases(length):
        with kernels.plain():
            expected = call()
        found = call()
        far[name] = farthest(found, expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = call()
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(dense(again), dense(found), strict=True):
            assert torch.equal(one, other), name
    print(length, {name: f"{value:.1e}" for name, value in far.items()})
    # A number on the border between two may fall to either side; the plain rotation rounds twice.
    assert max(far.values()) < 5e-3, far


@torch.no_grad()
@pytest.mark.parametrize("level", LEVELS)
def test_operations_of_the_decoder(level):
    frames, rows, columns, channels = level
    h, skip = draw(1, *level), draw(1, *level, seed=1)
    phases = draw(1, frames, rows // 2 + 1, columns // 2 + 1, 4 * channels, seed=2)
    bias, gamma = draw(channels, seed=3), 1 + 0.1 * draw(channels, seed=4)
    fast, plain = fast_ops(h), PlainOps()
    assert fast is not None
    calls = {
        "norm": lambda ops: ops.norm(h, bias, gamma, 2),
        "sum and norm": lambda ops: ops.add_norm(h, bias, skip, gamma, 2),
        "doubled and norm": lambda ops: ops.double_norm(phases, bias, gamma, 2),
    }
    far = {name: farthest(call(fast), call(plain)) for name, call in calls.items()}
    print(level, {name: f"{value:.1e}" for name, value in far.items()})
    assert max(far.values()) < 5e-3, far
    bytes_apart = (fast.levels(h, bias).int() - plain.levels(h, bias).int()).abs()
    assert int(bytes_apart.max()) <= 1
    assert float(bytes_apart.float().mean()) < 1e-3


@torch.no_grad()
def test_e4m3_attention_keeps_what_values_share():
    """Exact but for a rounding, though 11,040 of Hopper's short sums have it in common."""
    shape = (1, 11040, HEADS, WIDTH // HEADS)
    query, key = (draw(*shape, seed=seed) for seed in (0, 1))
    value = 0.8 * draw(*shape, seed=2) + 0.6 * draw(1, 1, *shape[2:], seed=3)
    exact = kernels.attention(query, key, value)
    eight = [kernels.quantise_heads(x) for x in (query, key)]
    forms = {
        "as they are": kernels.attention_e4m3(*eight, kernels.quantise_heads(value)),
        "centred": kernels.attention_e4m3(*eight, *kernels.quantise_centred(value)),
    }
    far = {name: farthest(out, exact) for name, out in forms.items()}
    print({name: f"{value:.2%}" for name, value in far.items()})
    assert far["centred"] < 0.01
