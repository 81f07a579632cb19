import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.model import cast, fp32_names, load_transformer, published_name, save_transformer

from .cases import build, inputs

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    save_transformer(build(), tmp_path)
    return tmp_path


def edit(folder, change):
    """Rewrite the weights of a saved model."""
    tensors = dict(load_file(folder / FILE))
    change(tensors)
    save_file(tensors, folder / FILE)


def test_saved_and_loaded_is_the_same_model(folder):
    model, again = build(), load_transformer(folder)
    assert again.config == model.config
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())


def test_files_hold_published_names(folder):
    names = load_file(folder / FILE).keys()
    assert "blocks.1.attn1.to_out.0.weight" in names
    assert "norm_out.scale_shift_table" in names
    assert len(names) == 21 + 2 * 27
    assert json.loads((folder / "config.json").read_text())["num_layers"] == 2
    with pytest.raises(KeyError):
        published_name("blocks.0.self_attention.unheard_of")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_float32_islands(folder, dtype):
    loaded = load_transformer(folder, dtype=dtype)
    kept = fp32_names(loaded)
    assert kept == {
        *(f"time.linear{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")),
        *(f"blocks.{i}.modulation" for i in range(2)),
        *(f"blocks.{i}.cross_norm.{leaf}" for i in range(2) for leaf in ("weight", "bias")),
        "head.modulation",
    }
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (torch.float32 if name in kept else dtype), name
    assert loaded.dtype == dtype
    after = cast(load_transformer(folder), dtype).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in loaded.state_dict().items())


def test_casting_back_and_forth_keeps_the_parameters(folder):
    model = load_transformer(folder, dtype=torch.bfloat16)
    before = dict(model.named_parameters())
    assert cast(cast(model, torch.float32), torch.bfloat16) is model
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


def test_half_precision_storage_is_half_the_size(folder, tmp_path):
    model = load_transformer(folder)
    save_transformer(model, tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / FILE)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert model.dtype == torch.float32
    again = load_transformer(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    batch = inputs(model.config)
    with torch.no_grad():
        torch.testing.assert_close(again(*batch), model(*batch), rtol=0, atol=0.05)


def test_old_snapshots_are_renamed(folder):
    expected = load_file(folder / FILE)["norm_out.scale_shift_table"]

    def age(tensors):
        tensors["scale_shift_table"] = tensors.pop("norm_out.scale_shift_table")
        tensors["blocks.0.attn2.norm_added_q.weight"] = torch.zeros(24)

    edit(folder, age)
    model = load_transformer(folder)
    assert torch.equal(model.head.modulation, expected)
    assert model.blocks[0].modulation.shape == (1, 6, 24)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("proj_out.bias"), "missing head.project.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda t: t.update({"proj_out.bias": torch.zeros(3)}), r"head.project.bias is \[3\]"),
        (
            lambda t: t.update({"scale_shift_table": torch.zeros(1, 2, 24)}),
            "unexpected scale_shift_table",
        ),
        (
            lambda t: t.update({"blocks.2.attn1.to_q.bias": torch.zeros(24)}),
            "unexpected blocks.2.attn1.to_q.bias",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder, change, named):
    edit(folder, change)
    with pytest.raises(CheckpointError, match=named):
        load_transformer(folder)


def test_damaged_missing_and_pickled_weights(folder):
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:-100])
    with pytest.raises(CheckpointCorruptError):
        load_transformer(folder)
    (folder / FILE).unlink()
    with pytest.raises(CheckpointError, match="holds no"):
        load_transformer(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsafeCheckpointError):
        load_transformer(folder)


@pytest.mark.parametrize("mode", ["per_head", "scalar"])
def test_history_gains_survive_the_published_form(tmp_path, mode):
    model = build(is_amplify_history=True, history_scale_mode=mode)
    gains = [0.0, 1.25] if mode == "per_head" else [2.0]
    with torch.no_grad():
        for block in model.blocks:
            block.self_attention.history_gain.copy_(torch.tensor(gains))
    save_transformer(model, tmp_path)
    stored = load_file(tmp_path / FILE)["blocks.0.attn1.history_key_scale"]
    expected = torch.tensor(gains).exp()
    torch.testing.assert_close(1 + 9 * stored.sigmoid(), expected)
    again = load_transformer(tmp_path).blocks[1].self_attention.history_gain
    torch.testing.assert_close(again.detach(), torch.tensor(gains))


def test_the_published_initial_gain_is_known(tmp_path):
    save_transformer(build(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_amplify_history": True}))
    edit(
        tmp_path,
        lambda t: t.update({f"blocks.{i}.attn1.history_key_scale": torch.ones(2) for i in (0, 1)}),
    )
    gain = load_transformer(tmp_path, dtype=torch.bfloat16).blocks[0].self_attention.history_gain
    assert gain.dtype == torch.float32
    torch.testing.assert_close(gain.exp().detach(), torch.full((2,), 7.58), rtol=0, atol=2e-3)


@pytest.mark.parametrize("value", [-0.5, 2.5])
def test_gains_the_published_form_cannot_hold_are_refused(tmp_path, value):
    model = build(is_amplify_history=True)
    with torch.no_grad():
        model.blocks[0].self_attention.history_gain.fill_(value)
    with pytest.raises(CheckpointError, match="history_gain"):
        save_transformer(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shards_pass_between_us_and_diffusers(tmp_path):
    model = build()
    save_transformer(model, tmp_path / "ours", shard_bytes=20_000)
    theirs = diffusers.HeliosTransformer3DModel.from_pretrained(tmp_path / "ours")
    for name, value in model.named_parameters():
        assert torch.equal(theirs.state_dict()[published_name(name)], value)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*-of-*.safetensors"))) > 2
    again = load_transformer(tmp_path / "theirs").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.named_parameters())
