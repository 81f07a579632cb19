"""``helios live``: the bytes on standard output, and prompts that come while it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helios.cli.main import run
from helios.media import read_settings, read_video
from helios.pipeline import Pipeline

A, B = "a red ball rolls on grass", "a blue cube spins on snow"


def test_standard_output_is_the_video_and_lines_are_prompts(
    tiny_random: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "helios", "live", A, "--model", str(tiny_random)]
    command += ["--steps", "1", "--seed", "3", "--num-frames", "100", "--device", "cpu"]
    command += [
        "--dtype",
        "float32",
        "--transition",
        "0",
        "--save",
        str(tmp_path / "s.safetensors"),
    ]
    done = subprocess.run(command, input=f"{B}\n\n".encode(), capture_output=True, check=True)
    path = tmp_path / "live.mp4"
    path.write_bytes(done.stdout)
    told = done.stderr.decode()
    lands = int(told.split("lands in chunk ")[1].split(":")[0])
    assert f"chunk {lands}: {B}" in told
    video = pipeline([(0, A), (lands, B)], steps=1, seed=3, num_frames=100)
    wanted = read_video(video.save(tmp_path / "off.mp4"))[0]
    assert np.array_equal(read_video(path)[0], wanted)
    assert read_settings(path)["seed"] == 3
    session = pipeline.resume(tmp_path / "s.safetensors")
    assert session.index == 4


def test_a_size_that_memory_cannot_hold_is_refused_before_a_weight_is_read(
    tiny_random: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helios.pipeline.machines.available_memory", lambda: 256 << 20)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("helios.storage.Weights.read", read)
    place = ["--model", str(tiny_random), "--device", "cpu"]
    assert run(["live", A, *place, "--size", "8192x8192"]) == 5
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: 5: out of memory (8192x8192 by small on CPU, ")


def test_wrong_arguments_are_refused_before_the_model_is_loaded(
    tiny_random: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for more, code in (
        (["--steps", "1,2"], 2),
        (["--player", "no-such-player"], 3),
        (["--image", "missing.png"], 3),
    ):
        assert run(["live", A, "--model", str(tiny_random), *more]) == code
        assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {code}: ")
