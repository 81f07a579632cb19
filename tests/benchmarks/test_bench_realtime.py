"""The clock on a CPU: the program itself, on a model of random weights and few pixels."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return importlib.import_module("bench_realtime")


@pytest.fixture
def model(pipeline, tmp_path: Path) -> Path:
    pipeline.save(tmp_path / "model")
    return tmp_path / "model"


def test_frames_of_the_whole_file_are_counted(
    program: ModuleType, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures" / "realtime.json"
    how = ["--steps", "1", "--chunks", "3", "--dtype", "float32", "--prompt", "a red ball"]
    picture = tmp_path / "profile.svg"
    code = program.main(["--model", str(model), *how, "--out", str(out), "--plot", str(picture)])
    result = json.loads(out.read_text())
    row = result["dtypes"]["float32"]
    assert row["frames"] == 99
    assert row["frames_per_second"] == pytest.approx(99 / row["seconds"], rel=1e-2)
    assert row["bytes"] > 0
    assert code == (0 if row["frames_per_second"] >= 12 else 1)
    names = {one["operator"] for one in row["operators"]["decoding"]}
    assert any("conv" in name for name in names)
    assert "aten::addmm" in {one["operator"] for one in row["operators"]["sampling"]}
    text = out.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert "| float32 | **" in text
    assert row["kinds"]["decoding"]["convolutions"] > 0
    assert row["kinds"]["sampling"]["products"] > 0
    for part in ("sampling", "decoding"):
        total = sum(one["ms"] for one in row["operators"][part])
        assert sum(row["kinds"][part].values()) == pytest.approx(total, abs=0.5)
    assert picture.read_text().count("<rect") == 1 + 2 * len(program.KINDS)


def test_operators_are_counted_per_chunk(program: ModuleType) -> None:
    square = torch.ones(4, 4)

    def run() -> None:
        for _ in range(6):
            torch.mm(square, square)

    found = program.operators(run, 3)
    assert found["aten::mm"]["calls"] == 2
    rows = program.ordered({str(n): {"ms": float(n), "calls": 1.0} for n in range(20)})
    assert [row["ms"] for row in rows[:2]] == [19.0, 18.0]
    assert rows[-1] == {"operator": "all others", "ms": sum(range(8)), "calls": 8.0}
