"""What a start costs: one real one in this process, and two told by a stand-in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helios.cli import starts

ASKED = {
    "model": "random-tiny",
    "device": "cpu",
    "dtype": "float32",
    "size": "64x64",
    "layers": 1,
    "seed": 3,
    "tune_decoder": 0,
}


def test_a_start_is_measured_part_by_part() -> None:
    found = starts._start(ASKED)
    assert set(found["first"]) == set(found["again"]) == set(starts._STAGES)
    assert min(found["first"].values()) > 0
    assert 0 < found["first_frame"] <= found["first_chunk"]
    parts = found["imports"] + found["load"] + sum(found["first"].values())
    assert found["ready"] == pytest.approx(parts, rel=0.2)


def figures(ready: float) -> dict[str, Any]:
    parts = dict.fromkeys(starts._STAGES, 1.5)
    return {
        "imports": 3.0,
        "load": 4.0,
        "first": parts,
        "again": dict.fromkeys(starts._STAGES, 0.25),
        "ready": ready,
        "first_frame": 0.5,
        "first_chunk": 0.75,
        "later_chunk": 0.7,
    }


def test_the_second_start_finds_what_the_first_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def run(
        command: list[str], env: dict[str, str], **_: object
    ) -> subprocess.CompletedProcess[str]:
        assert json.loads(command[-1]) == ASKED
        folder = Path(env["TRITON_CACHE_DIR"])
        seen.append(folder)
        (folder / "a").mkdir(parents=True, exist_ok=True)
        (folder / "a" / "kernel.cubin").touch()
        out = "a line of no interest\n" + json.dumps(figures(12.0 / len(seen)))
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(subprocess, "run", run)
    found = starts.measure_starts(ASKED)
    assert seen[0] == seen[1]
    assert not seen[0].exists()
    assert [one["kernels"] for one in found] == [1, 0]
    text = starts.starts_markdown(found)
    assert "| **ready for a request** | **12.00** | **6.00** |" in text
    assert "| first decode, above a later one | 1.25 | 1.25 |" in text


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: no such model\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match="a start failed: ValueError: no such model"):
        starts.measure_starts(ASKED)
