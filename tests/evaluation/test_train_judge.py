import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helios.data.scenes import Scene, sample_scenes
from helios.evaluation import train_judge
from helios.evaluation.degrade import blur, degrade
from helios.evaluation.metrics.judge_file import load_judge
from helios.evaluation.metrics.scene_judge import Opinion, SceneJudge
from helios.evaluation.train_judge import (
    ABSENT,
    ClipRing,
    JudgeTraining,
    judge_config,
    judge_loss,
    labels,
    train,
)

CONFIG = judge_config()
SMALL = replace(CONFIG, widths=(8, 16, 16), hidden=32)
QUICK = JudgeTraining(
    steps=60,
    batch_size=6,
    peak_rate=1e-2,
    capacity=16,
    first_clips=16,
    render_batch=16,
    render_share=0.0,
    height=32,
    width=64,
)


PALETTE = torch.tensor(
    [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (60, 255)], dtype=torch.uint8
)


def paint(scenes: Sequence[Scene], *, height: int, width: int, **_: object) -> torch.Tensor:
    """A world that anyone can read: a patch per object, whose outline is its shape's number."""
    frames = torch.zeros(len(scenes), 33, height, width, 3, dtype=torch.uint8)
    for clip, scene in zip(frames, scenes, strict=True):
        clip[:] = 60 + 16 * CONFIG.settings.index(scene.setting)
        for number, item in enumerate(scene.objects):
            left, tall = 20 * number + 4, 6 + 3 * CONFIG.shapes.index(item.shape)
            clip[:, :tall, left : left + 14] = PALETTE[CONFIG.colours.index(item.colour)]
        clip[:: 2 + CONFIG.motions.index(scene.motion), :, 4:8] = 128
    return frames


def perfect(truth: dict[str, torch.Tensor]) -> Opinion:
    """Logits of a judge that knows the labels."""

    def sure(name: str, classes: int) -> torch.Tensor:
        chosen = truth[name].clamp_min(0)
        return 50.0 * torch.nn.functional.one_hot(chosen, classes).float()

    return Opinion(
        present=torch.where(truth["shape"] == ABSENT, -50.0, 50.0),
        shape=sure("shape", len(CONFIG.shapes)),
        size=sure("size", len(CONFIG.sizes)),
        material=sure("material", len(CONFIG.materials)),
        main=sure("main", len(CONFIG.colours)),
        motion=sure("motion", len(CONFIG.motions)),
        setting=sure("setting", len(CONFIG.settings)),
        camera=sure("camera", len(CONFIG.cameras)),
    )


def test_labels_say_what_the_scene_holds() -> None:
    scenes = sample_scenes(40, seed=5)
    truth = labels(scenes, CONFIG)
    for row, scene in enumerate(scenes):
        present = {CONFIG.colours[k] for k in torch.nonzero(truth["shape"][row] != ABSENT)}
        assert present == {item.colour for item in scene.objects}
        main = int(truth["main"][row])
        assert CONFIG.colours[main] == scene.objects[0].colour
        assert CONFIG.shapes[truth["shape"][row, main]] == scene.objects[0].shape
        assert CONFIG.motions[truth["motion"][row]] == scene.motion


def test_loss_is_zero_for_the_truth_and_not_for_another_scene() -> None:
    truth = labels(sample_scenes(8, seed=5), CONFIG)
    other = labels(sample_scenes(8, seed=6), CONFIG)
    assert sum(judge_loss(perfect(truth), truth).values()).item() == pytest.approx(0, abs=1e-6)
    losses = judge_loss(perfect(truth), other)
    assert all(losses[name].item() > 1 for name in ("present", "shape", "main", "motion"))


def test_absent_objects_do_not_teach_shapes() -> None:
    truth = labels(sample_scenes(6, seed=7), CONFIG)
    opinion = perfect(truth)
    absent = truth["shape"] == ABSENT
    opinion.shape[absent] = torch.randn_like(opinion.shape[absent])
    assert judge_loss(opinion, truth)["shape"].item() == pytest.approx(0, abs=1e-6)


def test_ring_keeps_the_newest_clips() -> None:
    ring = ClipRing(replace(QUICK, capacity=4, first_clips=4, render_batch=2), torch.device("cpu"))
    for value in range(6):
        frames = torch.full((1, 33, 32, 64, 3), value, dtype=torch.uint8)
        ring.add(frames, {"motion": torch.tensor([value])})
    assert len(ring) == 4
    frames, truth = ring.draw(64, torch.Generator().manual_seed(0))
    assert frames.shape == (64, 16, 32, 64, 3)
    assert torch.equal(frames[:, 3, 5, 6, 0].long(), truth["motion"])
    assert set(truth["motion"].tolist()) == {2, 3, 4, 5}


def test_loss_falls_on_a_world_that_anyone_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_judge, "film", paint)
    monkeypatch.setattr(train_judge, "judge_config", lambda: SMALL)
    monkeypatch.setattr(train_judge, "degrade", lambda frames, _: frames)
    judge, losses = train(QUICK, torch.device("cpu"))
    assert isinstance(judge, SceneJudge)
    assert not judge.training
    assert len(losses) == 60
    # A judge that knows only how often each class occurs stays above 0.7.
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_training_program_writes_judge_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_judge, "judge_config", lambda: SMALL)
    sizes = "--height 32 --width 48 --batch-size 2 --clips 4 --first-clips 4 --validation 4"
    arguments = f"--out {tmp_path} --steps 2 --device cpu {sizes}"
    train_judge.main(arguments.split())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == 2
    assert set(report["tables"]) == {"clean", "blurred"}
    assert report["tables"]["clean"]["overall"]["count"]["total"] == 4
    judge = load_judge(tmp_path)
    assert sum(value.numel() for value in judge.parameters()) == report["parameters"]


def test_impossible_trainings() -> None:
    with pytest.raises(ValueError, match="positive"):
        JudgeTraining(seconds=0)
    with pytest.raises(ValueError, match="capacity"):
        JudgeTraining(capacity=10, first_clips=20)


def test_blur_keeps_flat_pictures_and_spreads_a_point() -> None:
    flat = torch.full((1, 2, 3, 16, 24), 0.3)
    torch.testing.assert_close(blur(flat, 1.5), flat)
    point = torch.zeros(1, 1, 1, 33, 33)
    point[..., 16, 16] = 1
    spread = blur(point, 2.0)[0, 0, 0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    offset = torch.arange(33) - 16.0
    variance = (spread.sum(0) * offset.square()).sum().item()
    # The kernel is cut at 2.5 standard deviations, which costs a tenth of the variance.
    assert variance == pytest.approx(4.0, rel=0.12)


def test_damage_is_bounded_seeded_and_different_for_each_clip() -> None:
    frames = torch.rand(4, 3, 3, 32, 48) * 2 - 1
    first = degrade(frames, torch.Generator().manual_seed(1))
    again = degrade(frames, torch.Generator().manual_seed(1))
    other = degrade(frames, torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == frames.shape
    assert first.abs().max() <= 1
