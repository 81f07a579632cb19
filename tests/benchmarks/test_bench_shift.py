"""The comparison of time shifts, on a random model of three scales."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helios.data.scenes import sample_scenes
from helios.diffusion import Pyramid
from helios.evaluation.caption_suite import AccuracyConfig
from helios.evaluation.reading import Reading, reading_of
from helios.pipeline import GenerationConfig, Pipeline

PROGRAMS = Path(__file__).parents[2] / "benchmarks"
CONFIG = AccuracyConfig(captions=2, chunks=1, batch_size=2, parts=("model",), seed=4)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("bench_shift")


@pytest.fixture
def pyramid(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    plan = Pyramid(steps=(1, 2, 2), solver="renoise")
    return make_pipeline(GenerationConfig(height=64, width=64, plan=plan, guidance=None), stages=3)


class Judge:
    """Reads every first caption right and every second wrong; remembers what it saw."""

    def __init__(self) -> None:
        self.scenes = sample_scenes(2, seed=4, split="test")
        self.seen: list[torch.Tensor] = []

    def __call__(self, frames: torch.Tensor) -> list[Reading]:
        self.seen.append(frames)
        return [reading_of(self.scenes[0])] * len(frames)


def test_both_shifts_are_judged_on_the_same_captions(
    program: ModuleType, pyramid: Pipeline
) -> None:
    judge = Judge()
    found = program.compare(pyramid, CONFIG, judge)
    assert set(found["tables"]) == {"published, chunk 1", "consistent, chunk 1"}
    assert all(table["overall"]["count"].total == 2 for table in found["tables"].values())
    assert not torch.equal(judge.seen[0], judge.seen[1])
    assert 1e-4 < found["distance"] < 1
    assert pyramid.schedule.lag  # the model itself is as it was


def test_one_step_a_scale_is_nearly_the_same_under_both(
    program: ModuleType, pyramid: Pipeline
) -> None:
    few, many = (
        program.compare(pyramid, CONFIG, Judge(), steps)["distance"]
        for steps in ((1, 1, 1), (1, 2, 2))
    )
    assert few < 0.2 * many


def test_one_scale_knows_no_difference(program: ModuleType, pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="one scale"):
        program.with_shift(pipeline, "published")
