"""What e4m3 costs a model, on a random one and a judge that looks at single pixels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from helios.diffusion import Flat
from helios.evaluation.caption_suite import Captions
from helios.evaluation.reading import Reading, reading_of
from helios.model import is_quantised
from helios.pipeline import GenerationConfig, Pipeline

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("bench_fp8")


class Judge:
    """Reads the truth, but for every second video of quantised models."""

    def __init__(self, pipe: Pipeline, captions: Captions) -> None:
        self.pipe, self.captions = pipe, captions

    def features(self, frames: Tensor) -> Tensor:
        return frames[:, ::16, 0, :2].flatten(1).float()

    def read(self, frames: Tensor) -> list[Reading]:
        readings = [reading_of(scene) for scene in self.captions.scenes]
        if is_quantised(self.pipe.transformer):
            readings[::2] = readings[1::2]
        return readings


def test_losses_are_found_and_the_model_is_left_as_it_was(
    program: ModuleType, make_pipeline: Callable[..., Pipeline]
) -> None:
    pipe = make_pipeline(defaults=GenerationConfig(height=64, width=64, plan=Flat(steps=1)))
    before = {name: value.clone() for name, value in pipe.transformer.named_parameters()}
    captions = Captions.draw(4, 3)
    videos = program.Videos(captions=captions, seed=3, size=4)
    result = program.compare(pipe, Judge(pipe, captions), videos)
    assert result["e4m3"].startswith("rounded")
    exact, products, both = result["arms"].values()
    assert set(exact["right"].values()) == {1.0}
    assert (exact["distance_ratio"], exact["features_apart"]) == (1, 0)
    assert {d["value"] for d in exact["difference"].values()} == {0.0}
    # Half of the videos are read as their neighbours, which never share all four attributes.
    assert products["difference"]["all four"]["value"] == -0.5
    assert products["features_apart"] > 0
    assert both["features_apart"] != products["features_apart"]
    lines = program.verdict(result)
    assert [line.split(":")[0] for line in lines] == [
        "e4m3 products",
        "e4m3 products and attention",
    ]
    assert all("BEYOND" in line for line in lines)
    assert "| all four | 100.00 | -50.00 " in program.table(result)
    after = dict(pipe.transformer.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_within_the_limits_is_said_so(program: ModuleType) -> None:
    def row(lost: float, ratio: float) -> dict[str, object]:
        return {"difference": {"shape": {"value": -lost}}, "distance_ratio": ratio}

    arms = {"bfloat16": row(0, 1), "a": row(0.01, 1.05), "b": row(0.011, 1), "c": row(0, 1.06)}
    lines = program.verdict({"arms": arms})
    assert ["BEYOND" in line for line in lines] == [False, True, True]
    assert np.isclose(program.LOSS, 0.01)
