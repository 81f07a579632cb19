import math

import torch
import torch.nn.functional as F

from helios.model.embedding import TextProjection, TimeEmbedding, sinusoid

from .cases import perturb, small


def test_sinusoid_is_cosines_then_sines():
    out = sinusoid(torch.tensor([0, 3]), 8)
    assert torch.equal(out[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    frequencies = [10000 ** (-i / 4) for i in range(4)]
    expected = [math.cos(3 * f) for f in frequencies] + [math.sin(3 * f) for f in frequencies]
    torch.testing.assert_close(out[1], torch.tensor(expected))


def test_timesteps_of_any_dtype_mean_the_same():
    embedding = perturb(TimeEmbedding(small()))
    outs = [
        embedding(torch.tensor([7, 999], dtype=dtype), torch.float32)
        for dtype in (torch.int64, torch.float32, torch.float64)
    ]
    for out in outs[1:]:
        assert torch.equal(out[0], outs[0][0])
        assert torch.equal(out[1], outs[0][1])
    assert outs[0][1].shape == (2, 6, 24)


def test_neighbouring_timesteps_differ_in_half_precision():
    """bfloat16 holds 996 and 1000 but nothing between: the sinusoid must not be made of it."""
    embedding = perturb(TimeEmbedding(small()))
    embedding.project.bfloat16()
    head, blocks = embedding(torch.tensor([997.0, 998.0]), torch.bfloat16)
    assert head.dtype == blocks.dtype == torch.bfloat16
    assert not torch.equal(head[0], head[1])


def test_autocast_does_not_reach_the_time_embedding():
    embedding = perturb(TimeEmbedding(small()))
    timestep = torch.tensor([123.4])
    plain, _ = embedding(timestep, torch.float32)
    seen = []
    embedding.linear2.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        inside, blocks = embedding(timestep, torch.bfloat16)
    assert seen == [torch.float32]
    assert blocks.dtype == torch.bfloat16
    assert torch.equal(inside, plain.bfloat16())


def test_text_projection_is_the_formula():
    projection = perturb(TextProjection(small()))
    text = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    hidden = text @ projection.linear1.weight.T + projection.linear1.bias
    gelu = 0.5 * hidden * (1 + torch.tanh((2 / math.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    expected = F.linear(gelu, projection.linear2.weight, projection.linear2.bias)
    torch.testing.assert_close(projection(text), expected)
