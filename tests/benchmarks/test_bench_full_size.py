"""The full-size program, end to end with its small network."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path
from types import ModuleType

import pytest
import torch

import helios
from helios.diffusion import Pyramid
from helios.storage import open_weights

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "bench_full_size.py"


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROGRAM.parent))
        yield importlib.import_module("bench_full_size")


@pytest.fixture(scope="module")
def folder(program: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("full")
    program.write(folder, program.SMALL, torch.device("cpu"))
    return folder


def options(folder: Path, **values: object) -> argparse.Namespace:
    usual = {"report": None, "device": "cpu", "cold": False, "small": True, "phase": None}
    usual |= {"dtype": "bfloat16", "low_memory": False, "memory": None}
    return argparse.Namespace(folder=folder, **{**usual, **values})


def test_it_writes_a_distilled_checkpoint_in_shards(program: ModuleType, folder: Path) -> None:
    weights = open_weights(folder / "transformer")
    assert len(weights.files) > 2
    assert max(file.stat().st_size for file in weights.files) < program.SMALL.shard_bytes * 1.05
    kept = [name for name, entry in weights.entries.items() if entry.dtype == "F32"]
    assert len(kept) == 4 + 1 + 3 * program.SMALL.transformer.num_layers
    pipe = helios.load(folder, "cpu", "bfloat16")
    assert pipe.defaults.plan == Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True)
    assert (pipe.schedule, pipe.text_encoder) == (program.SCHEDULE, None)


def test_all_parts_stay_within_their_limits(
    program: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh(command: list[str], **_: object) -> argparse.Namespace:
        """The child's work, here: a process of its own costs more than all of it."""
        assert command[1:3] == [str(PROGRAM), str(folder)]
        told = dict(zip(command[3:9:2], command[4:9:2], strict=True))
        result = program.one_phase(options(folder, phase=told["--phase"]))
        Path(told["--report"]).write_text(json.dumps(result), "utf-8")
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(program.subprocess, "run", fresh)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this checkpoint was trained")
        report = program.all_phases(options(folder))
    assert program.failures(report) == []
    assert len(program.table(report)) == 6 + 6
    assert [stage["size"] for stage in report["compare"]["stages"]] == [[4, 6], [8, 12], [16, 24]]
    assert report["run"]["shards"] > 2
    assert 0.1 < report["run"]["largest_latent"] < 100
    for stage in report["compare"]["stages"]:
        assert 1e-4 < stage["velocity"]["diffusers bfloat16"] < 0.1


def test_the_run_in_fp8_is_another_one(program: ModuleType, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this checkpoint was trained")
        eight = program.one_phase(options(folder, phase="run", dtype="fp8", low_memory=True))
    assert eight["repeats"]
    whole = sum(entry.bytes for entry in open_weights(folder / "transformer").entries.values())
    assert eight["plan"]["weights"]["transformer"] < 0.9 * whole


def test_a_limit_that_is_passed_is_named(program: ModuleType) -> None:
    far = {"ratio": 1.0, "float32, largest": 0.0}
    stage = {"stage": 1, "velocity": {**far, "ratio": 1.2}, "end": {**far, "float32, largest": 1.0}}
    memory = {"host_peak": 2, "host_limit": 1, "repeats": False}
    assert program.failures({"run": memory, "compare": {"stages": [stage]}}) == [
        "write did not finish",
        "host memory while loading",
        "the same request gave other latents",
        "velocity of stage 1 in bfloat16",
        "end of stage 1 in float32",
    ]


def test_memory_of_the_host_is_what_was_touched(program: ModuleType) -> None:
    with program.HostPeak() as host:
        held = mmap(-1, size := 64 * 2**20)  # new pages, whatever the allocator keeps
        held.write(bytes(size))
    assert 0.9 * size < host.peak - host.start < 3 * size


def test_a_folder_in_use_is_refused(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path)])
    assert program.main() == 6
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_too_little_disk_is_refused_before_anything_is_made(
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path / "new")])
    monkeypatch.setattr(program.shutil, "disk_usage", lambda _: argparse.Namespace(free=5e9))
    assert program.main() == 6
    assert "30 GB are needed" in capsys.readouterr().err
    assert not any((tmp_path / "new").iterdir())
