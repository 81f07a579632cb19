"""The real stages compiled, in bfloat16, on a CUDA device."""

import json
from dataclasses import replace

import pytest
import torch

from helios.distributed import World
from helios.pipeline import load
from helios.presets import override, training_preset
from helios.training import train

pytestmark = pytest.mark.gpu

INITIAL = "stage.initial=helios/assets/tiny"
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


def test_stage2_learns_and_its_result_makes_three_chunks(tmp_path):
    short = [*RING, "trainer.log_every=10", "trainer.optimizer.warmup_steps=10"]
    settings = [*short, "trainer.steps=50", "stage.batch=16", "stage.validation_clips=8", INITIAL]
    config = override(training_preset("tiny-stage2"), [*settings, "stage.sample_clips=1"])
    report = train(config, tmp_path, device="cuda")
    assert report["unseen_loss"] < 1.5
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    pipe = load(tmp_path / "model", device="cuda")
    video = pipe("a red ball bounces on green grass", num_frames=99, seed=1, steps=(2, 2, 2))
    assert video.frames.shape == (99, 128, 192, 3)


def test_packed_and_compiled_or_not_the_loss_is_the_same():
    settings = [*RING, "stage.batch=8", "stage.sample_clips=0", INITIAL]
    found = []
    for packed, compiled in ((True, True), (True, False), (False, False)):
        config = override(training_preset("tiny-stage2"), [*settings, f"stage.packed={packed}"])
        world = World(device=torch.device("cuda", 0))
        stage = config.stage.build(world, seed=0, compiled=compiled)
        stage.prepare()
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = stage.loss(stage.batch(0.0))
        loss.backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in stage.model.parameters() if p.grad is not None]
        )
        found.append([loss.item(), norm.item()])
    assert found[1] == pytest.approx(found[0], rel=2e-2)
    assert found[2] == pytest.approx(found[0], rel=2e-2)


def test_a_resumed_run_goes_on(tmp_path):
    settings = [*RING, "trainer.log_every=1", "trainer.checkpoint_every=2", "trainer.steps=4"]
    codec = override(training_preset("tiny-codec"), [*settings, "stage.validation_clips=0"])
    train(codec, tmp_path / "a", device="cuda")
    middle = tmp_path / "a/checkpoints/step-00000002"
    train(codec, tmp_path / "b", device="cuda", resume=str(middle))
    # Atomic sums on the device may differ in the last bits; anything else would be far larger.
    assert losses(tmp_path / "b")[-1] == pytest.approx(losses(tmp_path / "a")[-1], rel=1e-2)
