"""Stage 3 on a CUDA device: the tiny presets, from precomputing to a few-step model."""

import json
from dataclasses import replace

import pytest
import torch

import helios.pipeline
from helios.cli.main import run
from helios.distributed import World
from helios.model import LoraConfig
from helios.presets import generation, override, training_preset
from helios.training import train

pytestmark = pytest.mark.gpu

RING = ["stage.data.group=8", "stage.data.first_groups=2", "stage.data.refresh_every=0"]
QUIET = [
    *("trainer.log_every=5", "trainer.checkpoint_every=0", "stage.sample_clips=0"),
    "trainer.compile=false",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The bundled weights as a flat model, and as one of three scales."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("base", "mid"):
        pipe = helios.pipeline.load("tiny", device="cuda", dtype="float32")
        pipe.defaults, pipe.schedule = generation.tiny(), generation.tiny_schedule()
        if name == "mid":
            pipe.defaults = generation.tiny_mid()
            pipe.schedule = generation.tiny_pyramid_schedule()
        pipe.save(folder / name)
    return folder


def stage3(models, *settings):
    paths = [f"stage.initial={models / 'mid'}", f"stage.teacher={models / 'base'}"]
    return override(training_preset("tiny-stage3"), [*RING, *QUIET, *paths, *settings])


def first_losses(config):
    world = World(device=torch.device("cuda", 0))
    stage = config.stage.build(world, seed=0, compiled=False)
    stage.prepare()
    found = []
    for loss_of in (stage.loss, stage.critic_loss):
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = loss_of(stage.batch(0.0))
        loss.backward()
        found.append(loss.item())
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in stage.model.parameters() if p.grad is not None]
    )
    return [*found, norm.item()]


def test_from_trajectories_to_a_few_step_model(tmp_path, models):
    out = tmp_path / "trajectories"
    how = ["--scenes", "32", "--sections", "2", "--steps", "4,4,4", "--shard", "16"]
    assert run(["precompute", "trajectories", str(models / "mid"), "--out", str(out), *how]) == 0
    paths = [f"stage.initial={models / 'mid'}", f"stage.trajectories={out}"]
    own = [
        "trainer.steps=50",
        "trainer.optimizer.warmup_steps=5",
        "stage.batch=8",
        "stage.sections=2",
    ]
    ode = override(training_preset("tiny-stage3-ode"), [*QUIET, *paths, *own])
    train(ode, tmp_path / "ode", device="cuda")
    lines = [json.loads(line) for line in (tmp_path / "ode/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]

    few = ["trainer.steps=50", "stage.batch=8", "stage.validation_clips=8", "stage.student_after=0"]
    config = stage3(models, *few)
    config = replace(config, stage=replace(config.stage, initial=tmp_path / "ode"))
    report = train(config, tmp_path / "dmd", device="cuda")
    assert report["unseen_distance"] < 10
    pipe = helios.pipeline.load(tmp_path / "dmd/model", device="cuda")
    for steps in ((1, 1, 1), (2, 2, 2)):
        video = pipe("a red ball bounces on green grass", num_frames=99, seed=1, steps=steps)
        assert video.frames.shape == (99, 128, 192, 3)


def test_recorded_passes_follow_the_weights(models):
    """The same sample by graphs as without, also after the student has learnt."""
    stage = stage3(models, "stage.batch=2").stage.build(
        World(device=torch.device("cuda", 0)), seed=0, compiled=False
    )
    stage.prepare()
    windows = stage.windows(stage.batch(0.0), False)
    graphs, found = stage._graphs, []
    for change in (0.0, 0.0, 0.01):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            for parameter in stage.model.parameters():
                parameter.add_(change * torch.randn_like(parameter) * parameter.std())
            for stage._graphs in (None, graphs):
                generator = torch.Generator("cuda").manual_seed(3)
                found.append(stage.rollout(windows, generator=generator, whole=True))
    assert graphs._recorded
    for plain, repeated in zip(found[::2], found[1::2], strict=True):
        torch.testing.assert_close(repeated, plain, rtol=0.05, atol=0.05)
    assert (found[0] - found[-1]).abs().mean() > 0.01


def test_offloading_changes_memory_and_nothing_else(models):
    config = stage3(models, "stage.batch=2", "stage.adversarial=none")
    economical = replace(config.stage, adapter=LoraConfig(rank=8), recompute=True)
    found = [
        first_losses(replace(config, stage=replace(economical, offload=offload)))
        for offload in (False, True)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_an_adapter_beside_offloaded_bases_ends_in_a_model_that_samples(tmp_path, models):
    few = ["trainer.steps=2", "stage.batch=2", "stage.validation_clips=8", "stage.student_after=0"]
    config = stage3(models, *few, "stage.adversarial=none", "trainer.moments_on_host=true")
    economical = {"adapter": LoraConfig(rank=8), "recompute": True, "offload": True}
    config = replace(config, stage=replace(config.stage, sample_clips=1, **economical))
    report = train(config, tmp_path, device="cuda")
    assert report["unseen_distance"] < 10
    assert (tmp_path / "samples/final/sheet.png").is_file()
    pipe = helios.pipeline.load(tmp_path / "model", device="cuda")
    assert pipe("a red ball", num_frames=33, seed=1, steps=(1, 1, 1)).frames.shape[0] == 33
