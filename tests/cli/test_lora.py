"""``helios generate --lora`` through its real entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helios.cli.generate import parse_lora
from helios.cli.main import run
from helios.media import read_settings, read_video
from helios.model import LoraConfig, new_adapter, save_adapter
from helios.pipeline import Pipeline

PROMPT = "a red ball rolls on grass"


@pytest.fixture
def file(tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    adapter = new_adapter(pipeline.transformer, LoraConfig(rank=2), generator)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3)
    save_adapter(adapter, tmp_path / "style.safetensors")
    return Path("style.safetensors")


def call(model: Path, *options: str) -> int:
    base = ["generate", PROMPT, "--model", str(model), "--dtype", "float32", "--seed", "7"]
    return run([*base, "--num-frames", "33", "--steps", "1", "--overwrite", *options])


def test_adapters_change_the_video_and_stand_in_its_settings(file: Path, tiny_random: Path) -> None:
    results = {}
    cases = {"plain": [], "off": ["--lora", f"{file}:0"], "on": ["--lora", str(file)]}
    for name, options in {
        **cases,
        "two": ["--lora", f"{file}:0.5", "--lora", f"{file}:0.5"],
    }.items():
        assert call(tiny_random, "-o", f"{name}.mp4", *options) == 0
        results[name] = read_settings(Path(f"{name}.mp4"))
    frames = {name: read_video(Path(f"{name}.mp4"))[0] for name in results}
    assert "lora" not in results["plain"]
    assert results["on"]["lora"] == {"style": 1.0}
    assert results["two"]["lora"] == {"style": 0.5, "style-2": 0.5}
    assert np.array_equal(frames["off"], frames["plain"])
    change = np.abs(frames["on"].astype(int) - frames["plain"]).mean()
    assert change > 1
    assert np.abs(frames["on"].astype(int) - frames["two"]).mean() < 0.1 * change


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: None, 4, "absent.safetensors is missing"),
        (lambda path: path.write_bytes(b"\x80\x04N."), 4, "damaged"),
        (lambda path: path.with_suffix(".pth").write_bytes(b"\x80\x04N."), 4, "pickle"),
    ],
)
def test_bad_files_are_refused_before_anything_is_loaded(
    make: object,
    code: int,
    words: str,
    tiny_random: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "absent.safetensors"
    make(path)  # type: ignore[operator]
    monkeypatch.setattr("helios.pipeline.load_inspected", lambda *_: pytest.fail("loaded"))
    name = path.with_suffix(".pth") if words == "pickle" else path
    assert call(tiny_random, "--lora", str(name)) == code
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_adapter_of_another_model_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", PROMPT, "--lora", str(file)]) == 4
    assert "does not fit this model" in capsys.readouterr().err.strip().splitlines()[-1]


def test_file_and_scale(tmp_path: Path) -> None:
    assert parse_lora("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert parse_lora("dir/a.safetensors:-0.5") == (Path("dir/a.safetensors"), -0.5)
    assert parse_lora("C:/a.safetensors") == (Path("C:/a.safetensors"), 1.0)
    odd = tmp_path / "a:2"
    odd.write_bytes(b"")
    assert parse_lora(str(odd)) == (odd, 1.0)
    there = tmp_path / "b.safetensors"
    there.write_bytes(b"")
    for text in ("", ":0.5", "a.safetensors:nan", f"{there}:loud"):
        with pytest.raises(ValueError, match="--lora"):
            parse_lora(text)
