import pytest
import torch

from helios.kernels import attention, varlen, varlen_attention
from helios.kernels.varlen import _borders, by_segment, in_one_call

LENGTHS = (5, 3, 8)


def draw(dtype=torch.float64, device="cpu", batch=2, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, sum(LENGTHS), 3, width)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        for _ in range(3)
    ]


def test_each_segment_is_attention_of_its_own():
    query, key, value = draw()
    mixed = varlen_attention(query, key, value, LENGTHS)
    first = 0
    for length in LENGTHS:
        part = slice(first, first + length)
        alone = attention(query[:, part], key[:, part], value[:, part])
        torch.testing.assert_close(mixed[:, part], alone, rtol=0, atol=1e-12)
        first += length


def test_it_is_attention_with_a_mask_gradients_included():
    tensors = [tensor.requires_grad_() for tensor in draw()]
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = owner[:, None] == owner[None]
    masked = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in tensors), attn_mask=mask
    ).transpose(1, 2)
    ours = varlen_attention(*tensors, LENGTHS)
    torch.testing.assert_close(ours, masked, rtol=0, atol=1e-12)
    weight = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((masked * weight).sum(), tensors),
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_one_segment_is_attention():
    tensors = draw(torch.float32)
    assert torch.equal(varlen_attention(*tensors, (16,)), attention(*tensors))


def test_borders_repeat_for_every_sample():
    borders = _borders(LENGTHS, 2, torch.device("cpu"))
    assert borders.tolist() == [0, 5, 8, 16, 21, 24, 32]
    assert borders.dtype == torch.int32


def test_one_call_is_one_graph_with_its_borders_inside(monkeypatch):
    def stand_in(query, key, value, starts, ends, longest, longest_key):
        assert query.shape == (2 * sum(LENGTHS), 3, 8)
        assert longest == longest_key == max(LENGTHS)
        return value + starts.sum() + ends[-1]

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    tensors = draw(torch.float32)
    compiled = torch.compile(in_one_call, dynamic=False, fullgraph=True, backend="eager")
    expected = tensors[2] + (0 + 5 + 8 + 16 + 21 + 24 + 32) + 32
    assert torch.equal(compiled(*tensors, LENGTHS), expected)


@pytest.mark.parametrize("lengths", [(5, 3, 7), (5, 0, 11), (16, 1)])
def test_lengths_must_fit(lengths):
    with pytest.raises(ValueError, match="segments"):
        varlen_attention(*draw(), lengths)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_both_forms_agree_on_cuda(dtype):
    tensors = [t.requires_grad_() for t in draw(dtype, "cuda", batch=3, width=64)]
    weight = torch.randn_like(tensors[0])
    found = []
    for form in (by_segment, in_one_call):
        out = form(*tensors, LENGTHS)
        found.append([out, *torch.autograd.grad((out * weight).sum(), tensors)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
