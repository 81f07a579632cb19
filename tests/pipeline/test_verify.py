"""Verification finds what was damaged, and only that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import helios
from helios.cli.main import run
from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.history import History
from helios.model import quantise
from helios.pipeline import verify_folder
from helios.storage import MANIFEST_NAME, manifest_of, read_tensors, write_json, write_tensors

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(tiny_random: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_random, tmp_path / "model"))


def test_a_saved_model_is_whole(copied: Path) -> None:
    said: list[str] = []
    verify_folder(copied, said.append)
    names = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert {line.split("  ")[0] for line in said} == names - {MANIFEST_NAME}
    assert all(line.endswith("  ok") for line in said)


def test_one_flipped_byte(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = json.loads((copied / MANIFEST_NAME).read_text())["files"][VAE]["sha256"]
    data = bytearray((copied / VAE).read_bytes())
    data[-1] ^= 1
    (copied / VAE).write_bytes(data)
    assert run(["checkpoint", "verify", str(copied)]) == 4
    output = capsys.readouterr()
    assert VAE in output.err
    assert wanted in output.err
    assert "transformer/config.json  ok" in output.out
    assert f"{VAE}  ok" not in output.out


def test_missing_and_overlong_files(copied: Path) -> None:
    (copied / "vae" / "config.json").unlink()
    with (copied / VAE).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="and 1 more files"):
        verify_folder(copied)


def test_weights_that_are_not_finite_are_named(copied: Path) -> None:
    tensors = dict(read_tensors(copied / "transformer"))
    tensors["proj_out.bias"] = torch.full_like(tensors["proj_out.bias"], float("nan"))
    tensors["norm_out.scale_shift_table"] = tensors["norm_out.scale_shift_table"] / 0
    write_tensors(copied / "transformer", tensors)
    write_json(copied / MANIFEST_NAME, manifest_of(copied))
    with pytest.raises(CheckpointCorruptError, match="finite in 2 tensors") as caught:
        verify_folder(copied)
    assert "proj_out.bias" in str(caught.value)
    assert "norm_out.scale_shift_table" in str(caught.value)


def test_a_quantised_model_is_whole_and_runs(make_pipeline: Any, tmp_path: Path) -> None:
    """Saved by the pipeline with its manifest, verified, loaded: the same velocity."""
    pipeline = make_pipeline()
    quantise(pipeline.transformer)
    verify_folder(pipeline.save(tmp_path / "model"))
    again = helios.load(tmp_path / "model", device="cpu", dtype="float32")
    latents = torch.randn(1, 16, 9, 4, 6, generator=torch.Generator().manual_seed(0))
    window = History.empty(1, 16, 4, 6).window()
    text = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = (
            pipe.transformer(latents, torch.tensor([500.0]), text, window)
            for pipe in (again, pipeline)
        )
    assert torch.equal(found, expected)
    tensors = dict(read_tensors(tmp_path / "model" / "transformer"))
    eight = tensors["blocks.0.attn1.to_q.weight"].view(torch.uint8).clone()
    eight[0, 0] = 0x7F  # not a number in e4m3
    tensors["blocks.0.attn1.to_q.weight"] = eight.view(torch.float8_e4m3fn)
    write_tensors(tmp_path / "model" / "transformer", tensors)
    write_json(tmp_path / "model" / MANIFEST_NAME, manifest_of(tmp_path / "model"))
    with pytest.raises(CheckpointCorruptError, match="to_q"):
        verify_folder(tmp_path / "model")


def test_without_a_manifest_headers_and_shapes_still_count(copied: Path) -> None:
    (copied / MANIFEST_NAME).unlink()
    verify_folder(copied)
    tensors = dict(read_tensors(copied / "vae"))
    tensors.pop(next(iter(tensors)))
    write_tensors(copied / "vae", tensors)
    with pytest.raises(CheckpointError, match="missing"):
        verify_folder(copied)


def test_a_manifest_cannot_point_outside(copied: Path) -> None:
    manifest = {"version": 1, "files": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}}}
    write_json(copied / MANIFEST_NAME, manifest)
    with pytest.raises(UnsafeCheckpointError, match="passwd"):
        verify_folder(copied)
    write_json(copied / MANIFEST_NAME, {"files": 1})
    with pytest.raises(CheckpointCorruptError, match="malformed"):
        verify_folder(copied)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        verify_folder(tmp_path)
    assert run(["checkpoint", "verify", str(tmp_path)]) == 4
