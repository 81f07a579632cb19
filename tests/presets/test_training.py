"""The named runs, against the table of the specification (training.md, 1 and 3.1)."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helios.diffusion import CFG, CFGZero, Flat, Pyramid, draw_sigma
from helios.distributed import World
from helios.pipeline import find_model as find_named_model
from helios.presets import corruption, generation, training_preset
from helios.training import learning_rate, to_json
from helios.training.networks import load_networks

BUNDLED = find_named_model("tiny")
FULL_SIZE = {
    "stage1": (43, 128, 5e-5, 0, 5_500, 2),
    "stage1-post": (44, 128, 3e-5, 0, 7_500, 2),
    "stage2": (45, 256, 1e-4, 1000, 16_000, 1),
    "stage2-post": (46, 256, 3e-5, 500, 20_000, 1),
}
"""Seed, rank, learning rate, warm-up, steps and clips per GPU."""
LEARNING = {
    "stage1": ("low_rank", "full"),
    "stage1-post": ("low_rank", "full"),
    "stage2": ("frozen", "frozen"),
    "stage2-post": ("low_rank", "low_rank"),
}


@pytest.mark.parametrize("name", sorted(FULL_SIZE))
def test_full_size_phases_have_the_published_hyperparameters(name):
    config, wanted = training_preset(name), FULL_SIZE[name]
    stage, trainer = config.stage, config.trainer
    optimizer = trainer.optimizer
    found = (
        *(trainer.seed, stage.adapter.rank, optimizer.lr, optimizer.warmup_steps),
        *(trainer.steps, stage.batch),
    )
    assert found == wanted
    assert (stage.adapter.patch_embedding, stage.adapter.memory_patches) == LEARNING[name]
    assert stage.adapter.alpha is None
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.clip) == (1e-4, 1.0)
    assert learning_rate(optimizer, 10**6, 1.0) == optimizer.lr
    assert trainer.checkpoint_every == trainer.sample_every == 500
    assert stage.drop.shares == pytest.approx((0.4, 0.0, 0.24))
    assert stage.caption_dropout == 0
    assert not stage.text_learns
    assert stage.recompute
    assert stage.transformer.num_layers == 40
    assert (stage.data.height, stage.data.width) == (384, 640)
    assert not stage.schedule.lag
    assert stage.schedule.dynamic.kind == "exponential"
    assert stage.schedule.dynamic.factor(10**6) == pytest.approx(7)
    assert to_json(config)["stage"]["adapter"]["rank"] == wanted[1]


def test_full_size_stages_make_what_base_and_mid_make():
    base, mid = training_preset("stage1").stage, training_preset("stage2").stage
    assert base.generation.plan == Flat(steps=50)
    assert base.generation.guidance == CFG(5.0)
    assert mid.generation.plan == Pyramid(steps=(20, 20, 20), zero_init=2)
    assert mid.generation.guidance == CFGZero(5.0)
    assert mid.scales == (1, 2, 1)
    assert training_preset("stage2-post").stage.scales == (1, 1, 1)
    law = base.noise
    draws = draw_sigma(50_000, mean=law.mean, std=law.std, uniform_share=law.uniform_share)
    assert draws.median().item() == pytest.approx(0.5, abs=0.01)
    assert draws.std().item() == pytest.approx(0.2083, abs=0.003)  # of sigmoid(N(0, 1))


def test_corruption_of_the_flow_stages():
    config = corruption.flow()
    assert (config.exposure, config.noise, config.down_up) == (0.0, 0.8, 0.1)
    shares = (config.noise, config.down_up, config.exposure, config.saturation, config.scale)
    assert 1 - sum(shares) == pytest.approx(0.1)
    assert config.noise_range == pytest.approx((0.0, 1 / 3))
    assert config.down_up_range == (0.0, 0.1)
    assert config.granularity == "frame"


@pytest.mark.parametrize("name", ["tiny-stage1-post", "tiny-stage2"])
def test_what_goes_on_needs_a_model_to_go_on_from(name):
    stage = training_preset(name).stage
    assert stage.initial is None
    with pytest.raises(ValueError, match="--initial"):
        replace(stage, codec=BUNDLED).build(
            World(device=torch.device("cpu")), seed=0, compiled=False
        )
    transformer, text = load_networks(BUNDLED, stage.transformer)
    assert transformer.config == stage.transformer
    assert text.dim == stage.transformer.text_dim


def test_the_tiny_pyramid_is_shifted_as_the_published_one():
    """At the three numbers of tokens of the tiny chunk (training.md, 10.2)."""
    for kind, factors in (("exponential", (5.09, 2.11, 1.70)), ("linear", (1.63, 0.75, 0.53))):
        schedule = generation.tiny_pyramid_schedule(kind)
        found = [schedule.dynamic.factor(tokens) for tokens in (864, 216, 54)]
        assert found == pytest.approx(factors, abs=0.006)
        assert not schedule.lag
    assert math.isinf(schedule.dynamic.max_mu)


def test_stage_3_has_the_published_hyperparameters():
    ode, stage3 = (training_preset(name) for name in ("stage3-ode", "stage3"))
    for config, seed in ((ode, 47), (stage3, 49)):
        optimizer, stage = config.trainer.optimizer, config.stage
        assert (config.trainer.seed, optimizer.lr) == (seed, 2e-6)
        assert (optimizer.betas, optimizer.weight_decay, optimizer.clip) == ((0, 0.999), 1e-3, 10)
        assert config.trainer.ema_decay == 0.99
        assert (stage.batch, stage.adapter.rank, stage.adapter.memory_patches) == (
            *(1, 256),
            "low_rank",
        )
        assert stage.generation == generation.distilled()
        assert stage.schedule.dynamic.kind == "linear"
        assert not stage.schedule.lag
    assert (ode.stage.sections, ode.stage.weight) == (3, 80)
    stage = stage3.stage
    assert stage.critic_optimizer.lr == 4e-7
    assert (stage.critic.rank, stage.critic.memory_patches) == (256, "frozen")
    assert (stage.student_every, stage.guidance) == (5, 4.0)
    assert (stage.renoise.alpha, stage.renoise.beta) == (4.0, 1.5)
    term = stage.adversarial
    assert (term.blocks, term.width) == ((5, 15, 25, 35), 768)
    assert (term.student_weight, term.critic_weight) == (0.05, 0.01)
    assert (term.r1_weight, term.r1_sigma) == (100, 0.1)


def test_the_tiny_student_is_sampled_at_the_levels_it_learns():
    ode, stage3 = (training_preset(f"tiny-{name}").stage for name in ("stage3-ode", "stage3"))
    assert ode.schedule == stage3.schedule == generation.tiny_pyramid_schedule("linear")
    assert ode.generation == stage3.generation == generation.tiny_distilled()
    assert ode.generation.guidance is None
    assert ode.generation.plan.steps == (2, 2, 2)
    assert max(stage3.adversarial.blocks) < stage3.transformer.num_layers


def test_an_adapter_is_small_and_beside_a_flat_model():
    stage = training_preset("lora").stage
    assert (stage.adapter.rank, stage.adapter.memory_patches) == (32, "frozen")
    assert isinstance(stage.generation.plan, Flat)


def test_every_test_that_the_documentation_names_is_there():
    root = Path(__file__).parents[2]
    text = (root / "docs/training.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)?(::\w+)?`", text)
    file, seen = "", 0
    for path, test in (pair for pair in named if any(pair)):
        file = (root / path).read_text() if path else file
        wanted = f"def {test.removeprefix('::')}(" if test else "def test_"
        assert wanted in file, (path, test)
        seen += 1
    assert seen > 60
