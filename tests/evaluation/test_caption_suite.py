import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helios.data.scenes import Scene, sample_scenes
from helios.evaluation import caption_suite, scene_accuracy
from helios.evaluation.caption_suite import AccuracyConfig, continuation, measure
from helios.evaluation.metrics.judge_file import save_judge
from helios.evaluation.metrics.scene_judge import SceneJudge
from helios.evaluation.reading import Reading, reading_of
from helios.evaluation.train_judge import judge_config
from helios.pipeline import Pipeline

CPU = torch.device("cpu")
QUICK = AccuracyConfig(
    captions=3, chunks=2, clips=2, steps=1, guidance=1.0, batch_size=2, height=32, width=48, seed=4
)


def grey(scenes: Sequence[Scene], *, start: int, frames: int, **_: object) -> torch.Tensor:
    """A film whose brightness is time: frame t is t everywhere."""
    time = torch.arange(start, start + frames, dtype=torch.uint8)
    return time.view(1, -1, 1, 1, 1).expand(len(scenes), frames, 32, 48, 3).clone()


class Knowing:
    """A judge that knows which scenes come, in which order."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = scenes
        self.seen: list[torch.Tensor] = []

    def __call__(self, frames: torch.Tensor) -> list[Reading]:
        assert frames.dtype == torch.uint8
        assert frames.shape[1:] == (33, 32, 48, 3)
        first = sum(len(part) for part in self.seen)
        self.seen.append(frames)
        count = len(self.scenes)
        return [reading_of(self.scenes[(first + i) % count]) for i in range(len(frames))]


def test_truth_is_judged_in_the_first_and_the_last_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_suite, "film", grey)
    config = AccuracyConfig(captions=40, chunks=3, parts=("truth",), seed=4)
    judge = Knowing(sample_scenes(40, seed=4, split="test"))
    report = measure(config, judge, None, CPU)
    assert set(report.tables) == {"truth, chunk 1", "truth, chunk 3"}
    for table in report.tables.values():
        assert {rate.share for rate in table["overall"].values()} == {1.0}
        assert table["overall"]["shape"].total == 40
    assert {int(part[0, 0, 0, 0, 0]) for part in judge.seen} == {0, 66}


def test_every_part_on_a_random_model(monkeypatch: pytest.MonkeyPatch, little: Pipeline) -> None:
    monkeypatch.setattr(caption_suite, "film", grey)
    report = measure(QUICK, Knowing(sample_scenes(3, seed=4, split="test")), little, CPU)
    assert set(report.tables) == {
        "truth, chunk 1",
        "truth, chunk 2",
        "codec, chunk 1",
        "codec, chunk 2",
        "model, chunk 1",
        "model, chunk 2",
        "untrained, chunk 1",
        "image, model, chunk 1",
        "image, model, chunk 2",
        "image, untrained, chunk 1",
        "video, model",
        "video, untrained",
    }
    assert set(report.images) == {"model", "untrained"}
    still = report.continuation["last frame repeated"]
    # Frame 65 stands still while the truth goes on from 66: off by 1 to 9 levels of grey.
    error = sum(step**2 for step in range(1, 10)) / 9
    assert still["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-3)
    assert set(report.continuation) == {
        "model",
        "untrained",
        "last frame repeated",
        "truth through the codec",
    }
    json.dumps(report.to_json())
    text = report.to_markdown()
    assert "model, chunk 1 | model, chunk 2 | untrained, chunk 1" in text
    assert "last frame repeated" in text


def test_continuation_of_equal_clips_counts_as_the_highest() -> None:
    frames = grey([None, None], start=0, frames=33)  # type: ignore[list-item]
    values = continuation(frames, frames)
    assert values["psnr"] == 60.0
    assert values["psnr ±"] == 0.0
    assert values["clips"] == 2


def test_only_the_first_nine_frames_of_a_continuation_count() -> None:
    truth = torch.zeros(1, 33, 8, 8, 3, dtype=torch.uint8)
    frames = truth + 5
    frames[:, 9:] = 200
    values = continuation(frames, truth)
    assert values["psnr"] == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    assert math.isnan(values["moving"])


def test_what_cannot_be_measured_is_refused(little: Pipeline) -> None:
    with pytest.raises(ValueError, match="captions must be at least 1"):
        AccuracyConfig(captions=0)
    with pytest.raises(ValueError, match="parts must be some of"):
        AccuracyConfig(parts=("colours",))
    with pytest.raises(ValueError, match="need a model"):
        measure(AccuracyConfig(), Knowing([]), None, CPU)


def test_program_writes_json_and_markdown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = SceneJudge(replace(judge_config(), widths=(8, 8, 16), hidden=16)).eval()
    save_judge(judge, tmp_path / "judge", torch.zeros(1, 2, 32, 48, 3).byte())
    out = tmp_path / "reports" / "truth.json"
    arguments = f"--ground-truth --captions 1 --chunks 1 --judge {tmp_path / 'judge'} --out {out}"
    scene_accuracy.main([*arguments.split(), "--device", "cpu"])
    report = json.loads(out.read_text())
    assert report["tables"]["truth, chunk 1"]["overall"]["count"]["total"] == 1
    assert report["settings"]["parts"] == ["truth"]
    assert "| setting |" in out.with_suffix(".md").read_text()
