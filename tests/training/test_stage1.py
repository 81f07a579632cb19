import json
import sys
from dataclasses import replace

import pytest
import torch

import helios.pipeline
from helios.training import Emphasis, OptimizerConfig, train

from .small import RING, stage1_config
from .test_codec_stage import same, tensors
from .toys import alone


def build(random_codec):
    return stage1_config(random_codec).stage.build(alone(), seed=0, compiled=False)


def test_resumed_equals_uninterrupted_bit_for_bit_and_the_result_generates(tmp_path, random_codec):
    report = train(stage1_config(random_codec), tmp_path / "a", device="cpu")
    middle = tmp_path / "a/checkpoints/step-00000003"
    again = train(stage1_config(random_codec), tmp_path / "b", device="cpu", resume=str(middle))
    ends = [tensors(tmp_path / run / "checkpoints/step-00000006") for run in "ab"]
    assert same(*ends)
    assert report == again
    assert 0.5 < report["unseen_loss"] < 4

    pipe = helios.pipeline.load(tmp_path / "a/model", device="cpu", dtype="float32")
    video = pipe("a red ball bounces on grass", num_frames=5, seed=1)
    assert video.frames.shape == (5, 32, 48, 3)
    weights = tmp_path / "a/model/transformer/diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(weights).values()} == {torch.float16}
    names = {path.name for path in (tmp_path / "a/samples/final").iterdir()}
    assert names == {"sheet.png", "prompts.txt", "00.mp4"}


def test_loss_falls(tmp_path, random_codec):
    config = stage1_config(
        random_codec,
        steps=40,
        checkpoint_every=0,
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=3),
    )
    stage = replace(config.stage, data=replace(RING, refresh_every=0), sample_clips=0)
    train(replace(config, stage=stage), tmp_path, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.88 * sum(losses[:5])


def test_everything_that_should_learn_gets_a_gradient(random_codec):
    stage = build(random_codec)
    stage.prepare()
    loss, scalars = stage.loss(stage.batch(0.0))
    loss.backward()
    assert scalars.keys() == {"loss_first"}
    idle = [name for name, p in stage.model.named_parameters() if p.grad is None]
    assert idle == []
    assert not any(p.requires_grad for p in stage._codec.network.parameters())


def test_emphasis_on_what_moves_fades_in_with_the_signal():
    clean = torch.zeros(2, 16, 9, 2, 3)
    clean[:, :, ::2, 0, 0] = 3.0
    sigma = torch.tensor([1.0, 0.25])
    weight = Emphasis(moving=5.0).weights(clean, sigma)
    assert weight.shape == (2, 1, 9, 2, 3)
    assert float(weight.mean()) == pytest.approx(1.0)
    relative = weight / weight[0, 0, 0, 1, 1]
    assert (relative[0] == 1).all()
    assert float(relative[1, 0, 0, 0, 0]) == pytest.approx(1 + 4 * 0.75)
    assert float(relative[1, 0, 0, 1, 0]) == 1


def test_emphasis_by_noise_level_takes_weight_from_high_noise():
    clean, sigma = torch.zeros(3, 16, 9, 2, 3), torch.tensor([0.1, 0.5, 0.75])
    weight = Emphasis(snr_limit=4.0).weights(clean, sigma)[:, 0, 0, 0, 0]
    torch.testing.assert_close(weight / weight[0], torch.tensor([1.0, 1 / 4, 1 / 36]))
    assert Emphasis().off
    assert not Emphasis(snr_limit=4.0).off


def test_emphasis_weighs_the_loss_and_logs_the_plain_one(random_codec):
    config = stage1_config(random_codec).stage
    stages = [
        replace(config, emphasis=emphasis).build(alone(), seed=0, compiled=False)
        for emphasis in (Emphasis(), Emphasis(moving=4.0))
    ]
    for stage in stages:
        stage.prepare()
    (plain, _), (weighed, scalars) = (stage.loss(stage.batch(0.0)) for stage in stages)
    assert float(scalars["loss_plain"]) == pytest.approx(float(plain), rel=1e-5)
    assert float(weighed) != pytest.approx(float(plain), rel=1e-4)


def test_without_pyav_there_is_a_sheet_and_one_line(tmp_path, random_codec, monkeypatch, capsys):
    stage = build(random_codec)
    monkeypatch.setitem(sys.modules, "av", None)
    stage.sample(stage.model.eval(), tmp_path / "samples")
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    assert names == {"sheet.png", "prompts.txt"}
    assert capsys.readouterr().err.count("no MP4 samples: PyAV is not installed") == 1
