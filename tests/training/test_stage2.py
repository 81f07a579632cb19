import json
from dataclasses import replace

import pytest
import torch

import helios.pipeline
from helios.diffusion import CFGZero, Pyramid, ScheduleConfig, ShiftLaw, stage_table
from helios.errors import CheckpointError
from helios.model import LoraConfig
from helios.pipeline import GenerationConfig
from helios.training import OptimizerConfig, RunConfig, Stage2Config, train
from helios.training.networks import parts_of
from helios.training.stage2 import draw_points

from .small import RING, stage1_config, trainer_config
from .test_codec_stage import same, tensors
from .toys import alone

SCHEDULE = ScheduleConfig(stages=3, dynamic=ShiftLaw(base_tokens=2, max_tokens=64))


def stage2_config(start, *, stage=(), **changes):
    """The smallest pictures that three scales divide: 64x64 pixels."""
    base = stage1_config(None).stage
    values = {
        "transformer": base.transformer,
        "text": base.text,
        "initial": start,
        "data": replace(RING, height=64, width=64, group=1),
        "sections": 2,
        "wordings": 2,
        "batch": 3,
        "generation": GenerationConfig(
            height=64,
            width=64,
            plan=Pyramid(steps=(1, 1, 1), solver="unipc", zero_init=1),
            guidance=CFGZero(2.0),
        ),
        "schedule": SCHEDULE,
        "validation_clips": 2,
        "sample_clips": 1,
        "sample_chunks": 1,
    }
    config = Stage2Config(**{**values, **dict(stage)})
    return RunConfig(stage=config, trainer=trainer_config(**changes))


@pytest.fixture(scope="module")
def start(tmp_path_factory, random_codec):
    """What one step of stage 1 leaves: a model folder to start from."""
    folder = tmp_path_factory.mktemp("stage1")
    config = stage1_config(random_codec, steps=1, checkpoint_every=0, final_checkpoint=False)
    stage = replace(config.stage, batch=1, sample_clips=0, validation_clips=0)
    train(replace(config, stage=stage), folder, device="cpu")
    return folder


def test_points_are_those_of_the_specification():
    """Shared noise, both ends of every scale, and timesteps of its own band (training.md, 4.2)."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 2, 3, 8, 16, generator=generator) for _ in range(2))
    points = draw_points(clean, noise, (1, 2, 1), SCHEDULE, generator)
    assert [point.scale for point in points] == [0, 1, 1, 2]
    assert [tuple(point.x.shape[-2:]) for point in points] == [(2, 4), (4, 8), (4, 8), (8, 16)]
    assert not torch.equal(points[1].timestep, points[2].timestep)

    def half(x):
        return x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-1, -3))

    def double(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    levels = [(half(half(clean)), 4 * half(half(noise))), (half(clean), 2 * half(noise))]
    levels.append((clean, noise))
    table = stage_table(SCHEDULE)
    for point in points:
        band, (x, n) = table[point.scale], levels[point.scale]
        start = n
        if point.scale:
            start = band.start * n + (1 - band.start) * double(levels[point.scale - 1][0])
        end = band.end * n + (1 - band.end) * x
        assert (point.timestep >= band.timestep_min - 1e-3).all()
        assert (point.timestep <= band.timestep_max + 1e-3).all()
        # The timestep says where between the ends the point lies, on the grid of 1000.
        share = (point.timestep.double() - band.timestep_min) / (
            band.timestep_max - band.timestep_min
        )
        sigma = (0.000999 + share * (0.999 - 0.000999)).float().view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(point.target, start - end, rtol=0, atol=1e-5)
        torch.testing.assert_close(point.x, sigma * start + (1 - sigma) * end, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scales", [(1, 1, 1), (1, 2, 1)])
def test_packed_or_not_the_loss_and_its_gradients_are_the_same(start, scales):
    found = []
    for packed in (True, False):
        stage = {"packed": packed, "scales": scales}
        built = stage2_config(start, stage=stage).stage.build(alone(), seed=0, compiled=False)
        built.prepare()
        loss, scalars = built.loss(built.batch(0.0))
        loss.backward()
        gradients = {n: p.grad for n, p in built.model.named_parameters() if p.grad is not None}
        found.append((float(loss.detach()), scalars, gradients))
    (one, scalars, of_one), (other, _, of_other) = found
    assert one == pytest.approx(other, rel=1e-6)
    assert of_one.keys() == of_other.keys()
    for name, gradient in of_one.items():
        torch.testing.assert_close(gradient, of_other[name], rtol=1e-3, atol=1e-6)
    means = torch.stack([scalars[f"loss_scale_{scale}"].detach() for scale in range(3)])
    weights = torch.tensor(scales) / sum(scales)
    assert one == pytest.approx(float((means * weights).sum()), rel=1e-5)


def test_recomputed_or_not_the_gradients_are_the_same(start):
    found = []
    for changes in ({}, {"recompute": True}, {"recompute": True, "packed": False}):
        stage = stage2_config(start, stage=changes).stage.build(alone(), seed=0, compiled=False)
        stage.prepare()
        stage.loss(stage.batch(0.0))[0].backward()
        found.append([p.grad for p in stage.model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    for one, other in zip(found[0], found[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_transformer_learns_and_the_text_encoder_stays(start):
    stage = stage2_config(start).stage.build(alone(), seed=0, compiled=False)
    stage.prepare()
    stage.loss(stage.batch(0.0))[0].backward()
    transformer, text = parts_of(stage.model)
    assert all(p.grad is not None for p in transformer.parameters())
    assert not any(p.requires_grad for p in text.parameters())


def test_resumed_equals_uninterrupted_and_the_result_generates_on_three_scales(tmp_path, start):
    config = stage2_config(start, steps=2, checkpoint_every=1)
    report = train(config, tmp_path / "a", device="cpu")
    middle = tmp_path / "a/checkpoints/step-00000001"
    again = train(config, tmp_path / "b", device="cpu", resume=str(middle))
    ends = [tensors(tmp_path / run / "checkpoints/step-00000002") for run in "ab"]
    assert same(*ends)
    assert report == again
    names = {"unseen_loss", *(f"unseen_loss_scale_{scale}" for scale in range(3))}
    assert report.keys() == names
    assert (tmp_path / "a/samples/final/sheet.png").is_file()

    pipe = helios.pipeline.load(tmp_path / "a/model", device="cpu", dtype="float32")
    assert pipe.defaults == config.stage.generation
    assert pipe.schedule == SCHEDULE
    request = helios.pipeline.Request(prompt="a red ball bounces on grass", num_frames=5, seed=1)
    assert pipe.settings(request)["shift"] == "consistent"
    video = pipe("a red ball bounces on grass", num_frames=5, seed=1, steps=(2, 2, 2))
    assert video.frames.shape == (5, 64, 64, 3)


def test_loss_falls(tmp_path, start):
    config = stage2_config(
        start,
        stage={"data": replace(RING, height=64, width=64, refresh_every=0), "sample_clips": 0},
        steps=40,
        checkpoint_every=0,
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=3),
    )
    train(config, tmp_path, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.88 * sum(losses[:5])


@pytest.mark.parametrize("memory", ["full", "low_rank"])
def test_an_adapter_learns_beside_the_model_and_is_merged_into_the_result(tmp_path, start, memory):
    adapter = LoraConfig(rank=2, patch_embedding="low_rank", memory_patches=memory)
    stage = {"adapter": adapter, "sample_clips": 0, "validation_clips": 0}
    config = stage2_config(
        start, stage=stage, steps=2, checkpoint_every=1, optimizer=OptimizerConfig(lr=0.05)
    )
    train(config, tmp_path / "run", device="cpu")
    saved, _ = tensors(tmp_path / "run/checkpoints/step-00000001")
    learnt = {name for name in saved if name.startswith("model.")}
    assert any(name.startswith("model.adapter.") for name in learnt)
    assert not any(name.endswith("self_attention.query.weight") for name in learnt)
    before = helios.pipeline.load(start / "model", device="cpu", dtype="float32").transformer
    after = helios.pipeline.load(tmp_path / "run/model", device="cpu", dtype="float32").transformer
    moved = {
        name
        for (name, one), other in zip(before.named_parameters(), after.parameters())
        if not torch.equal(one, other)
    }
    assert {"blocks.0.self_attention.query.weight", "patches.long.weight"} <= moved
    assert "blocks.0.modulation" not in moved
    again = train(
        config, tmp_path / "b", device="cpu", resume=str(tmp_path / "run/checkpoints/step-00000001")
    )
    assert again == {}
    assert same(*(tensors(tmp_path / run / "checkpoints/step-00000002") for run in ("run", "b")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": (1, 1)}, "scales"),
        ({"scales": (1, 0, 1)}, "scales"),
        ({"generation": GenerationConfig(height=64, width=64)}, "pyramid"),
        ({"data": RING}, "48x32"),
    ],
)
def test_configurations_without_meaning(start, changes, words):
    with pytest.raises(ValueError, match=words):
        stage2_config(start, stage=changes)


def test_what_is_missing_is_named(tmp_path, random_codec):
    with pytest.raises(ValueError, match="--codec"):
        stage2_config(None).stage.build(alone(), seed=0, compiled=False)
    with pytest.raises(CheckpointError, match="no autoencoder"):
        stage2_config(tmp_path).stage.build(alone(), seed=0, compiled=False)
    adapter = {"adapter": LoraConfig(), "codec": random_codec}
    with pytest.raises(ValueError, match="--initial"):
        stage2_config(None, stage=adapter).stage.build(alone(), seed=0, compiled=False)
