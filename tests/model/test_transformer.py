import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helios.history import HistoryWindow
from helios.model import HeliosTransformer, cast, reset_parameters
from helios.model.patch import unpatch
from helios.model.rope import rotary_tables

from .cases import build, inputs, small


def history_after(model, block=0):
    """Run-time record of the history tokens that leave a block; none leave the last one."""
    seen = []

    def record(_module, arguments, out):
        seen.append(out[:, : arguments[-1]].detach().clone())

    model.blocks[block].register_forward_hook(record)
    return seen


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 10)])
def test_the_velocity_has_the_shape_of_the_latents(size):
    model = build()
    x, *rest = inputs(model.config, batch=2, size=size, history=(8, 10))
    out = model(x, *rest)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert model.device.type == "cpu"


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet():
    model = build()
    x, timestep, text, window = inputs(model.config, batch=3)
    together = model(x, timestep, text, window)
    for i in range(3):
        one = slice(i, i + 1)
        part = HistoryWindow(window.frames[one], window.present[one])
        alone = model(x[one], timestep[one], text[one], part)
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_text_rows_does_not_matter():
    model = build()
    x, timestep, text, window = inputs(model.config, rows=9)
    text[:, 4:] = 0
    order = torch.tensor([0, 1, 2, 3, 8, 6, 4, 7, 5])
    reference = model(x, timestep, text, window)
    assert torch.equal(model(x, timestep, text[:, order], window), reference)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x, timestep, text[:, order], window), reference)


@torch.no_grad()
def test_every_input_matters():
    model = build()
    x, timestep, text, window = inputs(model.config)
    reference = model(x, timestep, text, window)
    changed = [model(-x, timestep, text, window), model(x, timestep / 2, text, window)]
    changed.append(model(x, timestep, -text, window))
    for frame in range(20):
        frames = window.frames.clone()
        frames[:, :, frame] += 1
        changed.append(model(x, timestep, text, HistoryWindow(frames, window.present)))
    assert all((other - reference).abs().max() > 1e-4 for other in changed)


@torch.no_grad()
def test_history_is_clean_whatever_the_timestep():
    """With the zero timestep, history reads the step only through the noisy tokens."""
    for zero in (True, False):
        model = build(zero_history_timestep=zero, restrict_self_attn=True)
        seen = history_after(model)
        x, timestep, text, window = inputs(model.config)
        for t in (timestep, timestep / 3):
            model(x, t, text, window)
        assert torch.equal(*seen) is zero


@torch.no_grad()
@pytest.mark.parametrize("restricted", [True, False])
def test_restricted_history_does_not_see_the_noisy_chunk(restricted):
    model = build(restrict_self_attn=restricted)
    seen = history_after(model)
    x, timestep, text, window = inputs(model.config)
    outs = [model(noisy, timestep, text, window) for noisy in (x, x + 1)]
    assert torch.equal(*seen) is restricted
    assert not torch.equal(*outs)


@torch.no_grad()
def test_restriction_leaves_the_first_noisy_queries_alone():
    """One block: noisy tokens still attend to everything, so the output is the same."""
    models = [build(num_layers=1, restrict_self_attn=flag) for flag in (True, False)]
    batch = inputs(models[0].config)
    torch.testing.assert_close(models[0](*batch), models[1](*batch))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["per_head", "scalar"])
def test_amplification_starts_as_the_identity(mode):
    plain = build()
    model = HeliosTransformer(small(is_amplify_history=True, history_scale_mode=mode))
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert len(missing) == 2
    batch = inputs(plain.config)
    assert torch.equal(model(*batch), plain(*batch))
    for block in model.blocks:
        block.self_attention.history_gain.fill_(1.0)
    assert (model(*batch) - plain(*batch)).abs().max() > 1e-4
    half = inputs(plain.config, dtype=torch.bfloat16)
    assert cast(model, torch.bfloat16)(*half).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("to_noisy_only", [True, False])
def test_text_reaches_history_only_when_asked(to_noisy_only):
    model = build(guidance_cross_attn=to_noisy_only, restrict_self_attn=True)
    seen = history_after(model)
    x, timestep, text, window = inputs(model.config)
    for words in (text, -text):
        model(x, timestep, words, window)
    assert torch.equal(*seen) is to_noisy_only


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", [{}, {"is_amplify_history": True, "restrict_self_attn": True}])
def test_gradients_reach_every_parameter(autocast, options):
    model = build(**options)
    x, timestep, text, window = inputs(model.config, batch=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = (model(x, timestep, text, window) - x).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_autocast_runs_in_half_precision_with_islands():
    model = build()
    batch = inputs(model.config, batch=2)
    reference = model(*batch)
    dtypes = {}

    def record(name):
        def hook(_module, _inputs, out):
            dtypes[name] = out.dtype

        return hook

    for name, module in model.named_modules():
        if not list(module.children()) and name:
            module.register_forward_hook(record(name))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*batch)
    assert out.dtype == torch.float32
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert wide == {"time.linear1", "time.linear2"}
    assert (out - reference).abs().max() < 0.05 * reference.abs().max()


@torch.no_grad()
def test_inputs_are_cast_to_the_model():
    model = cast(build(), torch.bfloat16)
    x, timestep, text, window = inputs(model.config)
    out = model(x, timestep.double(), text, window)
    narrow = inputs(model.config, dtype=torch.bfloat16)
    assert torch.equal(out, model(narrow[0], timestep, *narrow[2:]))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made; views of parameters are not made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and not func.is_view:
                self.numel = max(self.numel, value.numel())
        return out


@torch.no_grad()
def test_no_table_with_a_row_of_modulation_per_token():
    """The widest tensor is the hidden layer; six vectors per token would be three times that."""
    model = HeliosTransformer(
        small(num_attention_heads=4, attention_head_dim=32, rope_dim=(12, 10, 10), ffn_dim=256)
    )
    reset_parameters(model)
    batch = inputs(model.config, size=(8, 8))
    model(*batch)  # the rotary tables are made here
    with Largest() as largest:
        model(*batch)
    tokens = 9 * 16 + 2 * 16 + 4 + 4
    assert largest.numel == tokens * 256


@pytest.mark.parametrize("which", ["chunk", "history"])
def test_odd_latents_are_refused(which):
    model = build()
    sizes = {"chunk": ((5, 6), (4, 6)), "history": ((4, 6), (4, 7))}[which]
    with pytest.raises(ValueError, match="even"):
        model(*inputs(model.config, size=sizes[0], history=sizes[1]))


def test_one_graph_without_breaks_and_without_tables_inside():
    """Traced whole; the rotary tables are constants of the graph, and a new size is a new graph."""
    model = build(num_layers=1)
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend=keep, fullgraph=True, dynamic=False)
        for size in ((4, 6), (2, 4), (4, 6)):
            batch = inputs(model.config, size=size, history=(4, 6))
            torch.testing.assert_close(compiled(*batch), model(*batch), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 2
    operations = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not [name for name in operations if "pool" in name or "meshgrid" in name]
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_host_synchronisation():
    """On the meta device any read of a value would fail."""
    with torch.device("meta"):
        model = HeliosTransformer(small())
        x, timestep, text, window = (value.to("meta") for value in inputs(small()))
    out = model(x, timestep, text, window)
    assert out.shape == x.shape
    assert out.is_meta


@torch.no_grad()
def test_hidden_states_are_the_noisy_tokens_after_each_block():
    model = build()
    x, *rest = inputs(model.config, batch=2, size=(4, 6), history=(8, 10))
    last = len(model.blocks) - 1
    hidden = {0: None, last: None}
    out = model(x, *rest, hidden=hidden)
    grid = (x.shape[2], 2, 3)
    assert {tuple(h.shape) for h in hidden.values()} == {(2, model.config.width, *grid)}
    assert not torch.equal(hidden[0], hidden[last])
    head_time, _ = model.time_rows(rest[0], torch.float32)
    tokens = hidden[last].flatten(2).transpose(1, 2)
    assert torch.equal(unpatch(model.head(tokens, head_time), *grid), out)
    assert torch.equal(model(x, *rest), out)


@torch.no_grad()
def test_a_crop_lies_where_its_origin_says():
    model = build()
    x, *rest = inputs(model.config, batch=1, size=(4, 6), history=(8, 10))
    assert torch.equal(model(x, *rest, origin=(0, 0)), model(x, *rest))
    moved = model(x, *rest, origin=(2, 4))
    assert not torch.allclose(moved, model(x, *rest))
    config, device = model.config, torch.device("cpu")
    own = (config.rope_dim, config.rope_theta)
    whole = rotary_tables(*own, (9, 4, 5), (4, 5), device)
    crop = rotary_tables(*own, (9, 2, 3), (4, 5), device, (1, 2))
    for table, part in zip(whole, crop, strict=True):
        noisy = table[-9 * 4 * 5 :].unflatten(0, (9, 4, 5))[:, 1:3, 2:5]
        assert torch.equal(part[-9 * 2 * 3 :].unflatten(0, (9, 2, 3)), noisy)
    with pytest.raises(ValueError, match="even"):
        model(x, *rest, origin=(1, 0))


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_cross_attn": False, "zero_history_timestep": False},
        {"is_amplify_history": True, "restrict_self_attn": True, "cross_attn_norm": False},
    ],
)
def test_text_and_timestep_made_once_serve_as_well(options, autocast):
    model = build(**options)
    x, timestep, text, window = inputs(model.config, batch=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        memory, rows = model.read(text), model.modulate(timestep)
        expected = model(x, timestep, text, window)
        assert torch.equal(model(x, rows, memory, window), expected)
        assert torch.equal(model(x, rows, text, window), expected)
        assert torch.equal(model(x, timestep, memory, window), expected)
    assert rows.blocks.shape == (2, 2, 2, 6, 24)
    assert rows.blocks.dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_cross_attn": False},
        {"is_amplify_history": True, "restrict_self_attn": True, "cross_attn_norm": False},
    ],
)
def test_a_block_without_leaving_history_gives_the_same_noisy_tokens(options):
    model = build(**options)
    block, split = model.blocks[1], 5
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(2, n, 24, generator=generator).requires_grad_() for n in (13, 4))
    rows = torch.randn(2, 2, 6, 24, generator=generator)
    angles = torch.randn(13, 6, generator=generator)
    given = (x, text, rows, (angles.cos(), angles.sin()), split)
    whole, noisy = block(*given)[:, split:], block(*given, keep_history=False)
    torch.testing.assert_close(noisy, whole, rtol=1e-4, atol=1e-5)
    weights = torch.randn(noisy.shape, generator=generator)
    names, wanted = zip(*block.named_parameters())
    grads = [
        torch.autograd.grad((out * weights).sum(), (x, text, *wanted), retain_graph=True)
        for out in (whole, noisy)
    ]
    for name, one, other in zip(("x", "text", *names), *grads):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)
