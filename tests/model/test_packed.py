import pytest
import torch
from torch._dynamo.testing import CompileCounter

from helios.history import HistoryWindow
from helios.model import packed_block, packed_forward, recomputed

from .cases import build

SIZES = ((2, 4), (4, 8), (4, 8), (8, 16))


def question(config, batch=2):
    """Four inputs of three sizes and all that belongs to them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    inputs = [draw(batch, config.in_channels, 9, *size) for size in SIZES]
    timesteps = [1000 * torch.rand(batch, generator=generator) for _ in SIZES]
    frames = draw(batch, config.in_channels, 20, 8, 16)
    elapsed = torch.arange(batch) * 9
    window = HistoryWindow(frames, torch.ones(batch, 20, dtype=torch.bool), elapsed)
    return inputs, timesteps, draw(batch, 7, config.text_dim), window


def apart(model, inputs, timesteps, text, window):
    return [model(x, timestep, text, window) for x, timestep in zip(inputs, timesteps)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_cross_attn": False},
        {"restrict_self_attn": True},
        {"is_amplify_history": True},
        {"zero_history_timestep": False},
        {"without_anchor": True, "aligned_scales": True},
        {"absolute_positions": True, "cross_attn_norm": False},
    ],
)
def test_packed_answers_are_those_of_one_pass_per_scale(options):
    model = build(**options)
    asked = question(model.config)
    with torch.no_grad():
        for packed, alone in zip(packed_forward(model, *asked), apart(model, *asked)):
            torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


def test_packed_gradients_are_those_of_one_pass_per_scale():
    model = build()
    inputs, timesteps, text, window = question(model.config)
    text = text.requires_grad_()
    learning = [*model.parameters(), text]

    def gradients(answers):
        loss = torch.stack([answer.square().mean() for answer in answers]).mean()
        return loss, torch.autograd.grad(loss, learning)

    packed, of_packed = gradients(packed_forward(model, inputs, timesteps, text, window))
    alone, of_alone = gradients(apart(model, inputs, timesteps, text, window))
    assert float(packed.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)
    for mine, theirs in zip(of_packed, of_alone):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


def test_packed_under_autocast_is_in_half_precision():
    model = build()
    asked = question(model.config)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = packed_forward(model, *asked), apart(model, *asked)
    for packed, alone in zip(*found):
        assert packed.dtype == alone.dtype
        torch.testing.assert_close(packed, alone, rtol=5e-2, atol=5e-2)


def test_scales_do_not_see_each_other():
    model = build()
    inputs, timesteps, text, window = question(model.config)
    with torch.no_grad():
        before = packed_forward(model, inputs, timesteps, text, window)
        changed = [inputs[0] + 1, *inputs[1:]]
        after = packed_forward(model, changed, timesteps, text, window)
    assert not torch.allclose(before[0], after[0])
    assert all(torch.equal(one, other) for one, other in zip(before[1:], after[1:]))


def test_one_graph_serves_every_block():
    model = build(num_layers=3)
    asked = question(model.config)
    counter = CompileCounter()
    compiled = torch.compile(packed_block, dynamic=False, backend=counter, fullgraph=True)
    expected = packed_forward(model, *asked)
    made = packed_forward(model, *asked, run_block=compiled)
    assert counter.frame_count == 1
    for one, other in zip(made, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_recomputed_blocks_give_the_same_gradients():
    model = build()
    asked = question(model.config)
    found, kept = [], []
    for run_block in (packed_block, recomputed(packed_block)):
        saved = [0]

        def count(tensor, saved=saved):
            saved[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            answers = packed_forward(model, *asked, run_block=run_block)
        loss = sum(answer.square().mean() for answer in answers)
        found.append(torch.autograd.grad(loss, [*model.parameters()]))
        kept.append(saved[0])
    assert all(torch.equal(one, other) for one, other in zip(*found))
    assert kept[1] < 0.5 * kept[0]


def test_questions_must_fit():
    model = build()
    inputs, timesteps, text, window = question(model.config)
    with pytest.raises(ValueError, match="timesteps"):
        packed_forward(model, inputs, timesteps[1:], text, window)
    with pytest.raises(ValueError, match="even"):
        packed_forward(model, [inputs[0][..., 1:]], timesteps[:1], text, window)
