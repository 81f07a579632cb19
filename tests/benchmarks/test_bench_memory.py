"""Ours and diffusers, chunk by chunk: the program itself, over few chunks."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("bench_memory")


def test_both_make_the_same_video_and_ours_keeps_nothing(program: ModuleType) -> None:
    report = program.measure(4, "32x32")
    assert report["same_first_chunk"]
    for side in program.SIDES:
        assert len(report[side]["seconds"]) == len(report[side]["memory"]) == 4
    # Every chunk, not only the first.
    assert report["ours"]["latents"] == pytest.approx(report["diffusers"]["latents"], rel=1e-4)
    assert report["passed"]


def test_a_side_that_stops_is_named(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ours stopped"):
        next(program.take_turns(tmp_path / "nothing", 2, "32x32"))


def test_the_plot_shows_growth(program: ModuleType) -> None:
    flat = {"memory": [100.0 * 2**20] * 40, "seconds": [0.5] * 40}
    rising = {"memory": [(100.0 + n) * 2**20 for n in range(40)], "seconds": [1.0] * 40}
    drawn = program.plot({"ours": flat, "diffusers": rising})
    lines = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}polyline")
    ]
    assert len(lines) == 5
    memory_ours, memory_theirs, seconds_ours, seconds_theirs, quotient = lines
    assert len({y for _, y in memory_ours}) == len({y for _, y in seconds_ours}) == 1
    assert memory_theirs[-1][1] < memory_theirs[-5][1] < memory_ours[-1][1]
    assert seconds_theirs[0][1] < seconds_ours[0][1]
    assert {y for _, y in quotient} == {30.0}  # a quotient of 2, on an axis that ends there
    assert all(0 <= y <= program.HEIGHT for line in lines for _, y in line)
