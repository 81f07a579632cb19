"""Damage of the past: it is put where it belongs, and what is left of it is counted right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helios.evaluation import recovery
from helios.evaluation.heliosbench import Bench, takes_of
from helios.evaluation.prompts import BenchPrompt
from helios.evaluation.recovery import (
    SPOILS,
    SpoiltSource,
    _recovery,
    measure_recovery,
    plot,
    table,
)
from helios.evaluation.store import Record, Results
from helios.evaluation.suites import ArmSpec
from helios.pipeline import Pipeline

CPU = torch.device("cpu")
TAKES = takes_of([BenchPrompt("a red ball"), BenchPrompt("a blue cube")])


def record(curve: list[float]) -> Record:
    values = np.array(curve, np.float32)
    return Record({}, np.zeros(0, np.float16), np.zeros(0, np.uint8), b"", {"saturation": values})


def test_only_the_second_chunk_is_spoilt(little: Pipeline, little_folder: Path) -> None:
    spoil = next(one for one in SPOILS if one.figure == "lightness")
    twin, spoilt = (SpoiltSource("m", little, little_folder, how) for how in (None, spoil))
    assert twin.identity() != spoilt.identity()
    filed = {str(SpoiltSource("m", little, little_folder, s).identity()) for s in SPOILS}
    assert len(filed) == len(SPOILS)
    ours, theirs = (list(source.chunks(TAKES, 3)) for source in (spoilt, twin))
    assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(ours[1], theirs[1])
    assert not torch.equal(ours[2], theirs[2])  # it was the past of the third


def test_what_is_left_is_the_excess_over_the_twin() -> None:
    twins = [[record([0.3, 0.3, 0.4, 0.3]), record([0.5, 0.5, 0.5, 0.6])]]
    spoilt = [[record([0.3, 0.5, 0.5, 0.35]), record([0.5, 0.7, 0.6, 0.65])]]
    found = _recovery("m", SPOILS[0], spoilt, twins)
    assert found.excess == pytest.approx(0.2)
    np.testing.assert_allclose(found.left[0], [1, 0.5, 0.25], atol=1e-5)
    other = [[record([0.3, 0.3, 0.4, 0.3]), record([0.5, 0.5, 0.5, 0.6])]]
    both = _recovery("m", SPOILS[0], spoilt + other, twins + twins)  # a second training: no damage
    np.testing.assert_allclose(both.left, found.left, atol=1e-5)
    assert both.excess == pytest.approx(0.1)


def test_of_one_prompt_there_is_no_interval() -> None:
    found = _recovery("m", SPOILS[0], [[record([0, 2, 1])]], [[record([0, 0, 0])]])
    assert found.to_json()["left"] == {"value": [1, 0.5], "low": [None] * 2, "high": [None] * 2}


def test_the_program(
    tmp_path: Path, little_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"little={little_folder}", "--captions", "2", "--chunks", "3", "--device", "cpu"]
    recovery.main([*command, "--out", str(tmp_path)])
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(SPOILS)
    assert len({line.count("|") for line in lines}) == 1
    values = json.loads((tmp_path / "recovery.json").read_text("utf-8"))
    assert [one["left"]["value"][0] for one in values["recovery"]] == [1.0] * len(SPOILS)
    assert {path.name for path in tmp_path.glob("*.svg")} == {f"{s.figure}.svg" for s in SPOILS}
    recovery.main([*command, "--out", str(tmp_path)])
    assert "2 of 2 videos are there already" in capsys.readouterr().err


def test_too_short_to_recover(tmp_path: Path, little_folder: Path) -> None:
    bench = Bench(results=Results(tmp_path), lengths=(66,))
    with pytest.raises(ValueError, match="3 chunks"):
        measure_recovery(bench, [ArmSpec.parse(str(little_folder))], TAKES, device=CPU)


def test_every_model_has_its_row_and_line() -> None:
    twins = [[record([0, 0, 0]), record([0, 0, 0])]]
    spoilt = [[record([0, 2, 1]), record([0, 2, 1.5])]]
    found = [_recovery(name, SPOILS[0], spoilt, twins) for name in ("one", "two")]
    assert table(found).count("saturation x 1.4") == 2
    drawn = plot(found, SPOILS[0])
    assert drawn.startswith("<svg")
    assert "one" in drawn
    assert "two" in drawn
