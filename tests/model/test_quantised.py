import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file

from helios import kernels
from helios.errors import CheckpointError
from helios.model import (
    LoraConfig,
    adapters_of,
    cast,
    check_transformer,
    load_transformer,
    new_adapter,
    save_transformer,
)
from helios.model.fp8 import Fp8Linear
from helios.model.quantised import (
    FAMILIES,
    Difference,
    Fp8Config,
    fp8_errors,
    is_quantised,
    lay_out,
    quantise,
    quantised,
    tokens_in_e4m3,
)

from .cases import build, inputs

WIDE = {"num_attention_heads": 4, "attention_head_dim": 16, "rope_dim": (4, 6, 6), "ffn_dim": 128}


@torch.no_grad()
def test_every_linear_layer_of_a_block_but_the_text_is_quantised():
    model = quantise(build())
    eight = {n for n, m in model.named_modules() if isinstance(m, Fp8Linear)}
    expected = {
        f"blocks.{number}.{layer}"
        for number in range(2)
        for layer in (
            *(f"self_attention.{name}" for name in ("query", "key", "value", "out")),
            "cross_attention.query",
            *(f"feed_forward.{name}" for name in ("expand", "contract")),
        )
    }
    assert eight == expected
    assert is_quantised(model)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kept", "count"),
    [
        ((), 8),
        (("feed_forward.expand",), 7),
        (("feed_forward.contract", "cross_attention.query"), 6),
        (tuple(f"self_attention.{name}" for name in ("query", "key", "value")), 5),
    ],
)
def test_layers_that_are_kept_stay_exact(kept, count):
    model = cast(build(**WIDE), torch.bfloat16)
    batch = inputs(model.config, size=(8, 12), dtype=torch.bfloat16)
    exact = model(*batch)

    def error(**changes):
        with quantised(model, Fp8Config(attention_from=None, **changes)) as changed:
            names = [n for n, m in changed.named_modules() if isinstance(m, Fp8Linear)]
            return Difference.between(changed(*batch), exact).relative, names

    everything, all_names = error(kept_layers=())
    fewer, names = error(kept_layers=kept)
    assert len(names) == 2 * count
    assert not [name for name in names if name.split(".", 2)[2] in kept]
    assert set(names) <= set(all_names)
    assert fewer <= 1.05 * everything


@pytest.mark.parametrize("kept", [("cross_attention.key",), ("self_attention.query",)])
def test_layers_that_cannot_be_kept_are_named(kept):
    with pytest.raises(ValueError, match="kept_layers"):
        Fp8Config(kept_layers=kept)


@torch.no_grad()
def test_a_layer_is_its_weight_rounded_by_channel():
    """With an input that e4m3 holds exactly, all that is lost is lost in the weight."""
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1000
    layer = Fp8Linear(weight, torch.zeros(24))
    x = torch.eye(16)
    rows = layer(x).T
    scale = weight.abs().amax(1) / 448
    torch.testing.assert_close(layer.scale.flatten(), scale)
    assert ((rows - weight).abs() <= 16 * scale[:, None] + 1e-6).all()
    assert (rows.abs().amax(1) / weight.abs().amax(1) - 1).abs().max() < 1e-5


@torch.no_grad()
def test_the_error_is_that_of_e4m3_and_all_of_it_together_below_five_percent():
    model = cast(build(**WIDE), torch.bfloat16)
    batch = inputs(model.config, size=(8, 12), dtype=torch.bfloat16)
    config = Fp8Config(attention_from=1)
    exact = model(*batch)
    errors = fp8_errors(model, lambda asked: asked(*batch), config)
    assert set(errors) == {*FAMILIES, "attention", "all"}
    for name, error in errors.items():
        assert 1e-4 < error.relative < 0.05, (name, error)
        assert error.cosine > 0.998
    assert errors["all"].relative >= max(e.relative for e in errors.values()) / 2
    assert torch.equal(model(*batch), exact)
    assert not is_quantised(model)


@torch.no_grad()
def test_families_and_blocks_are_switches():
    model = build()
    with quantised(model, Fp8Config(families=("feed_forward",), kept_blocks=(1,))):
        eight = [n for n, m in model.named_modules() if isinstance(m, Fp8Linear)]
        assert eight == ["blocks.0.feed_forward.expand", "blocks.0.feed_forward.contract"]
    with pytest.raises(ValueError, match="there are 2 blocks"):
        quantise(model, Fp8Config(kept_blocks=(2,)))
    for wrong in ({"families": ("text",)}, {"kept_blocks": (-1,)}, {"attention_from": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Fp8Config(**wrong)


@torch.no_grad()
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("attention_from", [None, 5])
def test_a_saved_one_comes_back_bit_for_bit(attention_from, shard_bytes, tmp_path):
    model = cast(build(), torch.bfloat16)
    batch = inputs(model.config, dtype=torch.bfloat16)
    quantise(model, Fp8Config(attention_from=attention_from, kept_blocks=(1,)))
    save_transformer(model, tmp_path / "a", shard_bytes=shard_bytes)
    check_transformer(tmp_path / "a")
    again = load_transformer(tmp_path / "a", dtype=torch.bfloat16)
    assert torch.equal(again(*batch), model(*batch))
    assert again.blocks[0].self_attention.e4m3_from == attention_from
    assert not isinstance(again.blocks[1].feed_forward.expand, Fp8Linear)
    save_transformer(again, tmp_path / "b")
    settings = [json.loads((tmp_path / of / "config.json").read_text()) for of in "ab"]
    assert settings[0] == settings[1]
    tensors = load_file(tmp_path / "b" / "diffusion_pytorch_model.safetensors")
    name = "blocks.0.ffn.net.2.weight"
    assert tensors[name].dtype == torch.float8_e4m3fn
    assert tensors[f"{name}_scale"].dtype == torch.float32
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values()) == 7


@torch.no_grad()
def test_quantised_while_it_is_read_is_quantised_when_loaded(tmp_path):
    save_transformer(build(), tmp_path)
    config = Fp8Config(kept_blocks=(1,), attention_from=7)
    loaded = load_transformer(tmp_path, dtype=torch.bfloat16)
    whole = sum(p.nbytes for p in loaded.parameters())
    after = quantise(loaded, config)
    read = load_transformer(tmp_path, dtype=torch.bfloat16, fp8=config)
    assert sum(t.nbytes for t in (*read.parameters(), *read.buffers())) < whole
    ours, theirs = read.state_dict(), after.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert tokens_in_e4m3(read) == 7
    # What was saved so comes back as it was saved, whatever is asked for.
    save_transformer(read, tmp_path / "eight")
    again = load_transformer(tmp_path / "eight", dtype=torch.bfloat16, fp8=Fp8Config())
    assert again.state_dict().keys() == ours.keys()
    assert tokens_in_e4m3(again) == 7


def test_what_does_not_fit_is_refused(tmp_path):
    model = quantise(build())
    with pytest.raises(ValueError, match="stored as it is"):
        save_transformer(model, tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="quantised already"):
        quantise(model)
    save_transformer(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for entry in ({"version": 2}, {"version": 1, "attention_from": "all"}, "yes"):
        (tmp_path / "config.json").write_text(json.dumps({**settings, "fp8": entry}))
        with pytest.raises(CheckpointError, match="fp8 settings"):
            load_transformer(tmp_path)
    del settings["fp8"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="weight_scale"):
        load_transformer(tmp_path)


def test_adapters_first():
    model = build()
    adapters_of(model).add("one", new_adapter(model, LoraConfig(rank=2)))
    with pytest.raises(ValueError, match="merge them for good"):
        quantise(model)
    adapters_of(model).merge(keep=False)
    quantise(model)
    adapter = new_adapter(build(), LoraConfig(rank=2))
    with pytest.raises(ValueError, match="does not fit"):
        adapters_of(model).add("two", adapter)


def test_no_gradient_is_promised():
    model = quantise(build())
    x, *rest = inputs(model.config)
    with pytest.raises(ValueError, match="no_grad"):
        model(x.requires_grad_(), *rest)


@torch.no_grad()
@pytest.mark.parametrize("eight", [False, True])
def test_projections_side_by_side_give_the_same_bits(eight, monkeypatch):
    model = build(**WIDE)
    batch = inputs(model.config, batch=2)
    if eight:
        quantise(model)
        for block in model.blocks:
            for layer in (block.self_attention.query, block.self_attention.key):
                layer.values = layer.values.clone()
    apart = model(*batch)
    lay_out(model)
    names = ("query", "key", "value")
    weights = [getattr(model.blocks[0].self_attention, name).weight for name in names]
    parts = [w.values for w in weights] if eight else weights
    assert kernels.side_by_side(parts).shape == (3 * 64, 64)
    calls = []
    product = kernels.linear
    monkeypatch.setattr("helios.model.attention.linear", lambda *a: calls.append(a) or product(*a))
    assert torch.equal(model(*batch), apart)
    assert len(calls) == 2 * len(model.blocks)


def test_side_by_side_projections_train_and_adapt_as_ever():
    models = [build(**WIDE) for _ in range(2)]
    lay_out(models[1])
    found = []
    for model in models:
        x, *rest = inputs(model.config)
        (model(x, *rest) - x).square().mean().backward()
        found.append([p.grad for p in model.parameters()])
        adapter = new_adapter(model, LoraConfig(rank=2), torch.Generator().manual_seed(0))
        for factors in adapter.factors.values():
            torch.nn.init.normal_(factors.up, generator=torch.Generator().manual_seed(1))
        adapters_of(model).add("one", adapter)
        with torch.no_grad():
            found.append([model(x, *rest)])
    for one, other in zip([*found[0], *found[1]], [*found[2], *found[3]]):
        assert torch.equal(one, other)


@torch.no_grad()
def test_bounds_of_queries_and_keys_follow_their_gains():
    model = build()
    norm = model.blocks[0].self_attention.query_norm
    before = norm.bound(2)
    assert norm.bound(2)[0] is before[0]
    norm.weight.mul_(2)
    torch.testing.assert_close(norm.bound(2)[0], before[0] / 2)
    norm.weight.data = norm.weight.data * 2
    torch.testing.assert_close(norm.bound(2)[1], before[1] * 4)


@torch.no_grad()
def test_attention_in_e4m3_with_its_steps_apart_is_as_near():
    """Queries and keys that were made before, as where history is reused, are measured by head."""
    attention = build(**WIDE).blocks[0].self_attention
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 20, 64, generator=generator)
    angles = torch.randn(20, 8, generator=generator)
    rotation = (angles.cos(), angles.sin())
    exact = attention(x, rotation, 5)
    attention.e4m3_from = 20
    apart = attention.out(attention.mix(*attention.project(x, rotation), 5).flatten(2))
    for found in (attention(x, rotation, 5), apart):
        assert 1e-4 < Difference.between(found, exact).relative < 0.08


@torch.no_grad()
def test_the_mean_of_the_values_returns_whatever_reads_it():
    """Values that are nearly all alike: without their mean next to nothing is left."""
    attention = build(**WIDE).blocks[0].self_attention
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 64, generator=generator) + 0.1 * torch.randn(
        2, 20, 64, generator=generator
    )
    angles = torch.randn(20, 8, generator=generator)
    rotation = (angles.cos(), angles.sin())
    exact = attention(x, rotation, 5)
    attention.e4m3_from = 20
    dense = Difference.between(attention(x, rotation, 5), exact).relative
    attention.out = Fp8Linear(attention.out.weight, attention.out.bias)
    narrow = Difference.between(attention(x, rotation, 5), exact).relative
    assert dense < 0.01
    assert narrow < 0.05


def test_difference_is_the_formula():
    exact, found = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    difference = Difference.between(found, exact)
    assert difference.relative == pytest.approx(0.1)
    assert difference.cosine == pytest.approx((9 + 18) / (5 * (9 + 20.25) ** 0.5))


def test_laying_out_lets_go_of_what_a_weight_was_a_view_of():
    """A view keeps its base: of a 14B model in e4m3 that was 3 GB."""
    model = build(**WIDE)
    attention = model.blocks[0].self_attention
    wholes = []
    for name in ("query", "key", "value"):
        layer = getattr(attention, name)
        values = torch.zeros((1, *layer.weight.shape), dtype=kernels.E4M3)
        scale = torch.ones(1, len(layer.weight), 1)
        wholes += [weakref.ref(values), weakref.ref(scale)]
        setattr(attention, name, Fp8Linear(kernels.Scaled(values[0], scale[0]), layer.bias))
    del values, scale, layer
    gc.collect()
    assert all(whole() is not None for whole in wholes)
    lay_out(model)
    gc.collect()
    assert all(whole() is None for whole in wholes)
