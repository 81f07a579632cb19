"""The real stages compiled, in bfloat16, on a CUDA device."""

import json
from dataclasses import replace

import pytest

from helios.presets import override, training_preset
from helios.training import train

pytestmark = pytest.mark.gpu

RING = ["stage.data.group=8", "stage.data.first_groups=2", "stage.data.refresh_every=4"]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_both_presets_learn(tmp_path):
    short = [*RING, "trainer.log_every=10", "trainer.optimizer.warmup_steps=10"]
    codec = override(training_preset("tiny-codec"), [*short, "trainer.steps=60"])
    report = train(codec, tmp_path / "codec", device="cuda")
    assert report["psnr"] > 14
    assert losses(tmp_path / "codec")[-1] < losses(tmp_path / "codec")[0]

    settings = [*short, "trainer.steps=60", f"stage.codec={tmp_path / 'codec'}", "stage.batch=32"]
    stage1 = override(training_preset("tiny-stage1"), settings)
    stage1 = replace(stage1, stage=replace(stage1.stage, validation_clips=8, sample_clips=1))
    report = train(stage1, tmp_path / "stage1", device="cuda")
    assert report["unseen_loss"] < 2
    assert losses(tmp_path / "stage1")[-1] < 0.8 * losses(tmp_path / "stage1")[0]
    assert (tmp_path / "stage1/model/model_index.json").is_file()


def test_a_resumed_run_goes_on(tmp_path):
    settings = [*RING, "trainer.log_every=1", "trainer.checkpoint_every=2", "trainer.steps=4"]
    codec = override(training_preset("tiny-codec"), [*settings, "stage.validation_clips=0"])
    train(codec, tmp_path / "a", device="cuda")
    middle = tmp_path / "a/checkpoints/step-00000002"
    train(codec, tmp_path / "b", device="cuda", resume=str(middle))
    # Atomic sums on the device may differ in the last bits; anything else would be far larger.
    assert losses(tmp_path / "b")[-1] == pytest.approx(losses(tmp_path / "a")[-1], rel=1e-2)
