"""Exported folders: dtype, shards, refusals; and the figures of ``helios plan``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors import safe_open

import helios
from helios.cli.export import parse_bytes
from helios.cli.main import run
from helios.model import LoraConfig, new_adapter, published_name, save_adapter
from helios.pipeline import Pipeline

PROMPT = "a red ball rolls on grass"


def adapter_file(pipe: Pipeline, path: Path, seed: int = 0) -> Path:
    """An adapter of the kind that training writes: every linear layer and the history patches."""
    generator = torch.Generator().manual_seed(seed)
    adapter = new_adapter(pipe.transformer, LoraConfig(rank=2), generator)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(adapter, path)
    return path


def dtypes(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as reader:
            for name in reader.keys():  # noqa: SIM118
                kind = reader.get_slice(name).get_dtype()
                found.setdefault(file.parent.name, set()).add(kind)
    return found


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_a_narrow_copy_keeps_what_must_stay_wide(
    tiny_random: Path, tmp_path: Path, dtype: str, stored: str
) -> None:
    out = tmp_path / "out"
    assert run(["export", str(tiny_random), str(out), "--dtype", dtype]) == 0
    found = dtypes(out)
    assert found["transformer"] == {stored, "F32"}
    assert found["vae"] == {"F32"}
    assert stored in found["text_encoder"]
    wide = helios.load(tiny_random, device="cpu", dtype="float32").transformer.state_dict()
    narrow = helios.load(out, device="cpu", dtype="float32").transformer.state_dict()
    for name, value in wide.items():
        torch.testing.assert_close(narrow[name], value, rtol=2**-8, atol=1e-6)
    assert torch.equal(narrow["head.modulation"], wide["head.modulation"])
    assert run(["checkpoint", "verify", str(out)]) == 0


def test_shards_and_refusals(
    tiny_random: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helios.cli.export.parse_bytes", lambda _: 20_000)
    out = tmp_path / "out"
    base = ["export", str(tiny_random), str(out), "--dtype", "float32"]
    assert run(base) == 0
    assert (out / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert len(list((out / "transformer").glob("*-of-*.safetensors"))) > 3
    assert run(base) == 6
    assert run([*base, "--overwrite"]) == 0
    assert run(["export", str(tiny_random), str(tmp_path / "b"), "--dtype", "int8"]) == 2
    assert run(["export", str(tiny_random), str(tmp_path / "b"), "--lora", "none.safetensors"]) == 4
    monkeypatch.setattr("helios.cli.export.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    assert run(["export", str(tiny_random), str(tmp_path / "b")]) == 6
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("scales", [(1.0,), (0.5, -0.3)])
def test_merged_adapters_are_the_model(
    tiny_random: Path, tmp_path: Path, scales: tuple[float, ...]
) -> None:
    pipe = helios.load(tiny_random, device="cpu", dtype="float32")
    fields = {"num_frames": 33, "seed": 3, "steps": 2}
    plain = pipe(PROMPT, **fields).latents
    options = []
    for number, scale in enumerate(scales):
        file = adapter_file(pipe, tmp_path / f"{number}.safetensors", seed=number)
        options += ["--lora", f"{file}:{scale}"]
        pipe.load_lora(file, str(number), scale)
    running = pipe(PROMPT, **fields).latents
    out = tmp_path / "merged"
    assert run(["export", str(tiny_random), str(out), "--dtype", "float32", *options]) == 0
    assert run(["checkpoint", "verify", str(out)]) == 0
    merged = helios.load(out, device="cpu", dtype="float32")
    assert merged.loras == {}
    torch.testing.assert_close(merged(PROMPT, **fields).latents, running, rtol=1e-5, atol=1e-5)
    assert (running - plain).abs().max() > 0.1
    # The patches of history, which travel in the same file, are merged as well.
    assert not torch.equal(
        merged.transformer.patches.long.weight,
        helios.load(tiny_random, device="cpu", dtype="float32").transformer.patches.long.weight,
    )


def test_diffusers_runs_what_was_merged(tiny_random: Path, tmp_path: Path) -> None:
    pipe = helios.load(tiny_random, device="cpu", dtype="float32")
    file = adapter_file(pipe, tmp_path / "style.safetensors")
    out = tmp_path / "merged"
    options = ["--dtype", "float32", "--lora", str(file)]
    assert run(["export", str(tiny_random), str(out), *options]) == 0
    theirs = diffusers.HeliosTransformer3DModel.from_pretrained(out / "transformer")
    pipe.load_lora(file, "style")
    pipe.merge_loras()
    ours = pipe.transformer.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(theirs.state_dict()[published_name(name)], value)


def test_sizes_in_words() -> None:
    assert [parse_bytes(text) for text in ("5GB", "500mb", "1.5 G", "2000000")] == [
        5 * 10**9, 5 * 10**8, 15 * 10**8, 2 * 10**6,
    ]  # fmt: skip
    for text in ("big", "5TB", "10", "-1GB"):
        with pytest.raises(ValueError, match="shard-size"):
            parse_bytes(text)


def test_plan_says_what_fits(
    tiny_random: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["plan", str(tiny_random), "--device", "cpu", "--dtype", "float32"]
    assert run(base) == 0
    assert "host memory" in capsys.readouterr().out
    assert run([*base, "--json", "--size", "64x32"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["device"] > sum(figures["weights"].values()) > 0
    assert run([*base, "--size", "65x32"]) == 2
    assert run(["plan", "tinny"]) == 4
    monkeypatch.setattr("helios.pipeline.machines.available_memory", lambda: 10**6)
    capsys.readouterr()
    assert run(base) == 5
    assert "are needed" in capsys.readouterr().err


def test_the_mean_of_two_trainings(tiny_random: Path, tmp_path: Path, capsys) -> None:
    one = helios.load(tiny_random, device="cpu", dtype="float32")
    other = helios.load(tiny_random, device="cpu", dtype="float32")
    with torch.no_grad():
        for part in (other.transformer, other.text_encoder):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter))
    other.save(tmp_path / "other")
    how = [str(tmp_path / "out"), "--dtype", "float32", "--average", str(tmp_path / "other")]
    assert run(["export", str(tiny_random), *how]) == 0
    mean = helios.load(tmp_path / "out", device="cpu", dtype="float32")
    for part in ("transformer", "text_encoder"):
        states = [getattr(pipe, part).state_dict() for pipe in (one, other, mean)]
        for name, value in states[2].items():
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    assert run(["export", str(tiny_random), str(tmp_path / "no"), "--average", "tiny"]) == 2
    assert "same network" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
