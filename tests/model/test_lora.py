import copy
import json
import pickle

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.model import (
    HeliosTransformer,
    LoraConfig,
    TransformerConfig,
    adapters_of,
    cast,
    empty_transformer,
    load_adapter,
    load_transformer,
    new_adapter,
    published_name,
    save_adapter,
    save_transformer,
)
from helios.model.patch import Patch

from .cases import ask_oracle, build, inputs

EVERYTHING = LoraConfig(rank=3, alpha=6.0, patch_embedding="low_rank", memory_patches="low_rank")
HELIOS = LoraConfig(
    rank=3, alpha=6.0, patch_embedding="low_rank", memory_patches="full", norms=True
)


def learnt(model, config=EVERYTHING, seed=0, size=0.1):
    """An adapter that does something everywhere."""
    generator = torch.Generator().manual_seed(seed)
    adapter = new_adapter(model, config, generator)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return adapter.requires_grad_(False)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in before)


def difference(one, two):
    return float((one - two).abs().max() / two.abs().max())


@torch.no_grad()
def ask(model, **options):
    return model(*inputs(model.config, **options))


def test_the_published_model_has_as_many_adapter_parameters_as_the_specification_says():
    model = empty_transformer(TransformerConfig())
    rank = 2

    def count(**options):
        adapter = new_adapter(model, LoraConfig(rank=rank, **options))
        return sum(p.numel() for p in adapter.parameters())

    linear = count(patch_embedding="frozen", memory_patches="frozen")
    assert linear == 4_868_416 * rank
    assert count(patch_embedding="low_rank", memory_patches="frozen") == linear + 5184 * rank
    assert count(memory_patches="low_rank") == linear + 20_032 * rank
    assert count(memory_patches="full") == linear + 23_936_000


def test_a_fresh_adapter_changes_nothing_and_starts_as_stated():
    model = build()
    before, plain = snapshot(model), ask(model)
    config = LoraConfig(rank=64, patch_embedding="full", norms=True)
    adapter = new_adapter(cast(model, torch.float32), config, torch.Generator().manual_seed(1))
    adapters_of(model).add("new", adapter)
    assert torch.equal(ask(model), plain)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.parameters())
    downs = torch.cat([f.down.detach().flatten() for f in adapter.factors.values()])
    assert float(downs.std()) == pytest.approx(1 / 64, rel=0.02)
    assert not any(f.up.any() for f in adapter.factors.values())
    adapters_of(model).remove("new")
    assert unchanged(model, before)


@pytest.mark.parametrize("change", [{"rank": 0}, {"alpha": -1.0}, {"memory_patches": "all"}])
def test_nonsense_cannot_be_written(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        LoraConfig(**change)


@pytest.mark.parametrize("config", [EVERYTHING, HELIOS])
def test_every_layer_computes_the_sum(config):
    """The whole network against one whose weights are W + scale * alpha / r * B A."""
    model, explicit = build(), build()
    adapter = learnt(model, config)
    with torch.no_grad():
        weights = dict(explicit.named_parameters())
        for name, tensor in adapter.tensors.items():
            weights[name].add_(0.5 * (tensor - weights[name]))
        for name, factors in adapter.factors.items():
            product = torch.einsum("or,ri->oi", factors.up.flatten(1), factors.down.flatten(1))
            weights[f"{name}.weight"].add_(0.5 * 2.0 * product.view_as(weights[f"{name}.weight"]))
    plain = ask(model)
    adapters_of(model).add("one", adapter, 0.5)
    assert difference(ask(model), ask(explicit)) < 1e-5
    assert difference(plain, ask(explicit)) > 0.05


def test_switched_off_is_the_base_bit_for_bit():
    model = build()
    before, plain = snapshot(model), ask(model)
    adapters = adapters_of(model)
    adapters.add("one", learnt(model, HELIOS))
    adapters.add("two", learnt(model, seed=5))
    both = ask(model)
    with adapters.using():
        assert torch.equal(ask(model), plain)
        assert unchanged(model, before)
        assert {type(m) for m in model.modules()} == {type(m) for m in build().modules()}
    assert torch.equal(ask(model), both)
    with adapters.using("two"):
        two = ask(model)
    adapters.remove("one")
    assert torch.equal(ask(model), two)
    adapters.set_scale("two", 0.0)
    assert torch.equal(ask(model), plain)
    adapters.remove("two")
    assert unchanged(model, before)


def test_stacked_adapters_add_up_in_any_order():
    model = build()
    first, second = learnt(model, HELIOS), learnt(model, HELIOS, seed=5)
    adapters = adapters_of(model)
    adapters.add("first", first, 0.7)
    adapters.add("second", second, -0.4)
    assert adapters.scales == {"first": 0.7, "second": -0.4}
    stacked = ask(model)
    adapters.remove("first")
    adapters.add("first", first, 0.7)
    assert difference(ask(model), stacked) < 1e-5
    name = "patches.long.weight"
    base = adapters.base_parameters()[name]
    parts = 0.7 * (first.tensors[name] - base) - 0.4 * (second.tensors[name] - base)
    assert torch.allclose(model.patches.long.weight, base + parts, atol=1e-6)


def test_names_scales_and_misfits_are_refused_before_anything_changes():
    model = build()
    adapters = adapters_of(model)
    adapters.add("one", learnt(model))
    acting = ask(model)
    with pytest.raises(ValueError, match="'one' is there already"):
        adapters.add("one", learnt(model))
    with pytest.raises(ValueError, match="no adapter is named 'two'; there are: 'one'"):
        adapters.remove("two")
    with pytest.raises(ValueError, match="finite"):
        adapters.set_scale("one", float("nan"))
    with pytest.raises(ValueError, match=r"does not fit.*blocks.0.feed_forward.expand"):
        adapters.add("wide", learnt(build(ffn_dim=36)))
    with pytest.raises(ValueError, match="not merged"):
        adapters.unmerge()
    assert adapters.scales == {"one": 1.0}
    assert torch.equal(ask(model), acting)


def test_layers_of_other_kinds_are_not_taken_for_linear_ones():
    class Other(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = build()
    adapter = learnt(model)
    model.head.project.__class__ = Other
    with pytest.raises(ValueError, match=r"does not fit this model: head\.project$"):
        adapters_of(model).add("one", adapter)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str
)
def test_merged_computes_the_same_and_unmerged_is_the_base_again(dtype, bound):
    model = cast(build(), dtype)
    before, plain = snapshot(model), ask(model)
    adapters = adapters_of(model)
    # Of the size of a real one: the bound is for adapters, not for other networks.
    adapters.add("one", learnt(model, HELIOS, size=0.01), 0.8)
    adapters.add("two", learnt(model, seed=5, size=0.01))
    beside = ask(model).float()
    adapters.merge()
    assert adapters.merged
    assert {type(m) for m in model.modules()} == {type(m) for m in build().modules()}
    assert difference(ask(model).float(), beside) < bound
    assert difference(plain.float(), beside) > 2 * bound
    with pytest.raises(ValueError, match="merged"):
        adapters.set_scale("one", 0.1)
    adapters.unmerge()
    assert torch.equal(ask(model).float(), beside)
    adapters.remove("one")
    adapters.remove("two")
    assert unchanged(model, before)
    assert torch.equal(ask(model), plain)


def test_merged_for_good_is_a_plain_model(tmp_path):
    model = build()
    adapters = adapters_of(model)
    adapters.add("one", learnt(model, HELIOS))
    beside = ask(model)
    adapters.merge(keep=False)
    assert adapters.scales == {}
    assert not adapters.merged
    save_transformer(model, tmp_path)
    oracle = HeliosTransformer3DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert difference(ask_oracle(oracle, *inputs(model.config)), beside) < 1e-5


def test_a_saved_model_is_the_base_whatever_acts_on_it(tmp_path):
    model = build()
    plain = ask(model)
    adapters_of(model).add("one", learnt(model, HELIOS))
    save_transformer(model, tmp_path)
    assert torch.equal(ask(load_transformer(tmp_path)), plain)


def test_a_merge_that_fails_leaves_the_base(monkeypatch):
    model = build()
    before = snapshot(model)
    adapters = adapters_of(model)
    adapters.add("one", learnt(model))
    acting = ask(model)
    last = list(adapters.acting[0][0].factors.values())[-1]

    def fail():
        raise MemoryError

    monkeypatch.setattr(last, "difference", fail)
    with pytest.raises(MemoryError):
        adapters.merge()
    assert not adapters.merged
    assert torch.equal(ask(model), acting)
    adapters.remove("one")
    assert unchanged(model, before)


def test_training_moves_the_adapter_and_nothing_else():
    model = build()
    before = snapshot(model)
    model.requires_grad_(False)
    adapter = new_adapter(model, HELIOS, torch.Generator().manual_seed(0))
    adapters = adapters_of(model)
    adapters.add("learning", adapter)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=3e-3)
    target = torch.randn(1, 16, 9, 4, 6, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(12):
        loss = (model(*inputs(model.config)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in adapter.parameters())
    assert all(f.up.any() for f in adapter.factors.values())
    with adapters.using():
        assert unchanged(model, before)
    assert not any(p.grad is not None for p in adapters.base_parameters().values())


def test_gradients_are_those_of_the_product():
    model = build().requires_grad_(False)
    adapter = learnt(model).requires_grad_(True)
    adapters_of(model).add("one", adapter)
    model(*inputs(model.config)).square().sum().backward()
    factors = adapter.factors["blocks.1.feed_forward.contract"]
    weight = model.blocks[1].feed_forward.contract.weight.requires_grad_()
    model(*inputs(model.config)).square().sum().backward()
    # For W + g B A: dA = g B^T dW and dB = g dW A^T. The second pass doubled what the first left.
    assert torch.allclose(factors.up.grad, 2 * 2.0 * weight.grad @ factors.down.T, rtol=1e-3)
    assert torch.allclose(factors.down.grad, 2 * 2.0 * factors.up.T @ weight.grad, rtol=1e-3)


def test_float32_factors_learn_beside_a_half_precision_base():
    model = cast(build(), torch.bfloat16).requires_grad_(False)
    adapter = new_adapter(model, EVERYTHING, torch.Generator().manual_seed(0))
    adapters_of(model).add("learning", adapter)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(*inputs(model.config))
        assert out.dtype == torch.bfloat16
        out.float().square().mean().backward()
        assert all(f.up.grad.dtype == torch.float32 for f in adapter.factors.values())
        assert all(f.up.grad.any() for f in adapter.factors.values())
        adapter.zero_grad()


def test_what_is_learnt_in_full_is_trained_alone():
    model = build()
    adapters = adapters_of(model)
    adapters.add("one", learnt(model, HELIOS))
    with pytest.raises(ValueError, match="train it alone"):
        adapters.add("two", new_adapter(model, HELIOS))
    assert list(adapters.scales) == ["one"]


def test_a_compiled_model_follows_its_adapters():
    model = build()
    compiled = torch.compile(model, backend="eager", dynamic=False)
    plain = ask(model)
    adapters = adapters_of(model)
    adapter = learnt(model, HELIOS)

    def run():
        with torch.no_grad():
            return compiled(*inputs(model.config))

    assert torch.allclose(run(), plain, atol=1e-5)
    for scale in (1.0, 0.5):
        adapters.add("one", adapter, scale)
        assert torch.allclose(run(), ask(model), atol=1e-5)
        assert difference(run(), plain) > 0.01
        adapters.remove("one")
    assert torch.allclose(run(), plain, atol=1e-5)


def test_a_copied_model_has_adapters_of_its_own():
    model = build()
    plain = ask(model)
    adapters_of(model).add("one", learnt(model, HELIOS))
    other = copy.deepcopy(model)
    acting = ask(model)
    adapters_of(model).remove("one")
    assert torch.equal(ask(other), acting)
    adapters_of(other).remove("one")
    assert torch.equal(ask(other), plain)


# Files


@pytest.fixture
def file(tmp_path):
    save_adapter(learnt(build(), HELIOS), tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def acting(path, scale=1.0):
    model = build()
    adapters_of(model).add("one", load_adapter(path, model), scale)
    return ask(model)


def test_saved_and_loaded_is_the_same_adapter(file):
    model = build()
    original = learnt(model, HELIOS)
    again = load_adapter(file, model)
    assert again.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in again.state_dict().items())
    assert {f.gain for f in again.factors.values()} == {2.0}
    assert not any(p.requires_grad for p in again.parameters())
    save_adapter(original, file, dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(file).values()} == {torch.bfloat16}


def test_files_hold_published_names(file):
    keys = load_file(file).keys()
    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in keys
    assert "transformer.blocks.1.attn2.to_out.0.lora_B.weight" in keys
    assert "transformer.condition_embedder.time_proj.lora_A.weight" in keys
    assert {"transformer.patch_short.weight", "transformer.patch_long.bias"} <= keys
    assert "transformer.blocks.0.attn1.norm_q.weight" in keys
    # Ten linear layers a block and six outside, one patch; three patches and four norms a block.
    assert len(keys) == 2 * (2 * 10 + 6 + 1) + 3 * 2 + 4 * 2


def test_files_of_several_ranks_and_scales_keep_them(tmp_path):
    model = build()
    one, two = learnt(model), learnt(model, LoraConfig(rank=5, alpha=2.0))
    mixed = type(one)({**one.factors, "head.project": two.factors["head.project"]}, {})
    save_adapter(mixed, tmp_path / "mixed.safetensors")
    again = load_adapter(tmp_path / "mixed.safetensors", model)
    gains = {name: factors.gain for name, factors in again.factors.items()}
    assert gains.pop("head.project") == pytest.approx(0.4)
    assert set(gains.values()) == {2.0}


def rewrite(source, target, rename, extra=None):
    """The same tensors under other keys, without metadata."""
    tensors = {rename(k): v for k, v in load_file(source).items()}
    save_file({**tensors, **(extra or {})}, target)


STYLES = {
    "peft": lambda k: k.replace("transformer.", "base_model.model.", 1),
    "named": lambda k: k.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"),
    "kohya": lambda k: (
        k.replace("transformer.", "diffusion_model.", 1)
        .replace("lora_A", "lora_down")
        .replace("lora_B", "lora_up")
    ),
    "older": lambda k: k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
    "bare": lambda k: k.removeprefix("transformer."),
    "wan": lambda k: (
        k.replace("transformer.", "diffusion_model.", 1)
        .replace("attn1.to_out.0.lora", "self_attn.o.lora")
        .replace("attn2.to_out.0.lora", "cross_attn.o.lora")
        .replace("attn1.to_", "self_attn.")
        .replace("attn2.to_", "cross_attn.")
        .replace("ffn.net.0.proj", "ffn.0")
        .replace("ffn.net.2", "ffn.2")
    ),
    "wrapped": lambda k: (
        k
        if "lora_" in k
        else k.replace("patch_short.", "patch_short.base_layer.").replace(
            "patch_mid.", "patch_mid.modules_to_save.default."
        )
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_the_ways_of_writing_keys(file, tmp_path, style):
    other = tmp_path / "other.safetensors"
    rewrite(file, other, STYLES[style])
    assert style == "bare" or load_file(other).keys() != load_file(file).keys()
    # Without metadata alpha equals the rank; the file's own factor was 2.
    model = build()
    loaded, original = load_adapter(other, model), load_adapter(file, model)
    assert {f.gain for f in loaded.factors.values()} == {1.0}
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_alpha_beside_the_factors_or_in_the_configuration(file, tmp_path):
    expected = acting(file)
    layers = [k.removesuffix(".lora_A.weight") for k in load_file(file) if ".lora_A." in k]
    alphas = {f"{layer}.alpha": torch.tensor(6.0) for layer in layers}
    rewrite(file, tmp_path / "alphas.safetensors", str, alphas)
    assert torch.equal(acting(tmp_path / "alphas.safetensors"), expected)

    folder = tmp_path / "peft"
    folder.mkdir()
    rewrite(file, folder / "adapter_model.safetensors", STYLES["peft"])
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"r": 3, "lora_alpha": 6, "peft_type": "LORA"}))
    assert torch.equal(acting(folder), expected)
    config.write_text(json.dumps({"lora_alpha": 2 * 3**0.5, "use_rslora": True}))
    assert torch.allclose(acting(folder), expected, atol=1e-5)
    config.write_text(json.dumps({"lora_alpha": 6, "alpha_pattern": {"to_q": 9, "^proj_out": 1}}))
    gains = {n: f.gain for n, f in load_adapter(folder, build()).factors.items()}
    assert gains["blocks.1.cross_attention.query"] == 3
    assert gains["head.project"] == pytest.approx(1 / 3)
    assert gains["blocks.1.cross_attention.key"] == 2
    config.write_text(json.dumps({"use_dora": True}))
    with pytest.raises(CheckpointError, match="DoRA"):
        load_adapter(folder, build())
    config.write_text(json.dumps({"lora_alpha": "6"}))
    with pytest.raises(CheckpointCorruptError, match="alpha"):
        load_adapter(folder, build())


def test_loaded_takes_the_precision_of_the_weights_it_is_for(file):
    model = cast(build(), torch.bfloat16)
    before = snapshot(model)
    adapter = load_adapter(file, model)
    own = dict(model.named_parameters())
    for name, factors in adapter.factors.items():
        assert factors.down.dtype == factors.up.dtype == own[f"{name}.weight"].dtype
    adapters_of(model).add("one", adapter)
    exact = acting(file)
    assert difference(ask(model).float(), exact) < 0.05
    assert unchanged(model, before) is False
    adapters_of(model).remove("one")
    assert unchanged(model, before)


def test_a_gain_of_history_travels_in_the_published_form(tmp_path):
    model = build(is_amplify_history=True)
    name = "blocks.0.self_attention.history_gain"
    value = nn.Parameter(torch.tensor([0.3, 1.2]))
    path = tmp_path / "gain.safetensors"
    save_adapter(type(learnt(model))({}, {name: value}), path)
    stored = load_file(path)["transformer.blocks.0.attn1.history_key_scale"]
    assert torch.allclose(1 + 9 * stored.sigmoid(), value.exp())
    assert torch.allclose(load_adapter(path, model).tensors[name], value)


def test_everything_that_does_not_fit_is_listed_together(file):
    tensors = load_file(file)
    first = "transformer.blocks.0.attn1.to_q"
    tensors["transformer.blocks.7.attn1.to_q.lora_A.weight"] = torch.zeros(3, 24)
    tensors["transformer.blocks.0.attn1.to_q.lora_magnitude_vector"] = torch.zeros(24)
    tensors[f"{first}.lora_B.bias"] = torch.zeros(24)
    del tensors["transformer.proj_out.lora_B.weight"]
    tensors["transformer.patch_short.weight"] = torch.zeros(24, 16, 1, 2, 1)
    tensors[f"{first}.lora_A.weight"] = torch.zeros(4, 24)
    tensors["transformer.blocks.0.attn1.to_k.lora_A.weight"] = torch.zeros(3, 24).long()
    tensors["diffusion_model.blocks.1.self_attn.q.lora_A.weight"] = torch.zeros(3, 24)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(file, build())
    text = str(caught.value)
    for part in (
        "unknown transformer.blocks.7.attn1.to_q.lora_A.weight",
        "unknown transformer.blocks.0.attn1.to_q.lora_magnitude_vector",
        f"unknown {first}.lora_B.bias",
        "missing proj_out.lora_B.weight",
        "transformer.patch_short.weight is [24, 16, 1, 2, 1], expected [24, 16, 1, 2, 2]",
        "blocks.0.attn1.to_q has factors [4, 24] and [24, 3] for [24, 24]",
        "to_k.lora_A.weight is torch.int64",
        "is there twice",
    ):
        assert part in text


def test_pickles_damage_and_nothing_at_all(file, tmp_path):
    model = build()
    for name in ("transformer_partial.pth", "pytorch_lora_weights.bin"):
        path = tmp_path / "unsafe" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(UnsafeCheckpointError, match="pickle"):
            load_adapter(path, model)
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        load_adapter(tmp_path / "unsafe", model)
    with pytest.raises(CheckpointError, match="missing"):
        load_adapter(tmp_path / "absent.safetensors", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load_adapter(tmp_path / "empty", model)
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load_adapter(tmp_path / "none.safetensors", model)
    tensors = load_file(file)
    tensors["transformer.proj_out.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointCorruptError, match="not finite"):
        load_adapter(tmp_path / "nan.safetensors", model)
    save_file(tensors, tmp_path / "text.safetensors", {"lora_adapter_metadata": "[]"})
    with pytest.raises(CheckpointCorruptError, match="metadata"):
        load_adapter(tmp_path / "text.safetensors", model)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointCorruptError, match="damaged"):
        load_adapter(file, model)
    with pytest.raises(ValueError, match="safetensors"):
        save_adapter(learnt(model), tmp_path / "one.bin")


def test_a_file_can_be_checked_against_a_model_without_weights(file):
    load_adapter(file, empty_transformer(build().config))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_adapter(file, empty_transformer(build(ffn_dim=36).config))


@torch.no_grad()
def test_a_file_means_to_diffusers_what_it_means_to_us(file, tmp_path):
    """diffusers' network with W + alpha / r * B A written out from the file's own tensors."""
    model = build()
    save_transformer(model, tmp_path / "base")
    oracle = HeliosTransformer3DModel.from_pretrained(tmp_path / "base")
    weights = dict(oracle.named_parameters())
    tensors = load_file(file)
    for key, tensor in tensors.items():
        name = key.removeprefix("transformer.")
        if "lora_" not in key:
            weights[name].copy_(tensor)
        elif "lora_A" in key:
            up = tensors[key.replace("lora_A", "lora_B")]
            target = weights[name.replace("lora_A.", "")]
            target.add_((6 / 3 * up.flatten(1) @ tensor.flatten(1)).view_as(target))
    expected = ask_oracle(oracle, *inputs(model.config))
    assert difference(acting(file), expected) < 1e-5
    assert difference(ask(model), expected) > 0.05


def test_names_cover_every_layer():
    model = HeliosTransformer(build().config)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Patch)]
    assert set(learnt(model).factors) == set(layers)
    assert all(published_name(f"{name}.weight").endswith(".weight") for name in layers)
