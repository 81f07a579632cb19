import json
from dataclasses import replace

import pytest
import torch

from helios.cli.main import run
from helios.model import LoraConfig
from helios.presets import override, training_preset
from helios.training import OptimizerConfig, training_memory
from helios.training.learner import Learner
from helios.training.networks import parts_of
from helios.training.optim import averaged_copy, host_copy
from helios.training.stage import Player

from .small import stage1_config, stage3_config
from .toys import alone

GB = 1e9
BASE = 14_312_427_584
"""Parameters of the published network."""


def forecast(name, *settings):
    return training_memory(override(training_preset(name), settings))


def test_counts_are_those_of_the_specification():
    """Training.md 0.1, 0.3 and 6.7: a base of 14.31 B, adapters of 1,246 M and heads of 988 M."""
    memory = forecast("stage3")
    assert BASE * 2 <= memory.frozen <= BASE * 2 * 1.01  # some of it stays float32
    student, critic, heads = 4_868_416 * 256 + 20_032 * 256, 4_868_416 * 256, 988e6
    assert memory.learning == pytest.approx(4 * (student + critic + heads), rel=2e-3)
    assert memory.average == 4 * student
    kept = 40 * (2940 + 4560 + 11040) * 5120 + 11040 * (26 * 5120 + 2 * 13824)
    assert memory.turns["student"] == 4 * student + 2 * kept
    # Three crops of a quarter of the picture are longer than the whole picture once.
    judged = 3 * (2400 + 2160)
    kept = 40 * (11040 + judged) * 5120 + judged * (26 * 5120 + 2 * 13824)
    assert memory.turns["critic"] == pytest.approx(4 * (critic + heads) + 2 * kept, rel=2e-3)


def test_the_tokens_of_every_stage_are_those_of_the_specification():
    """Training.md 7.4: two samples of 11,040 tokens; packed 23,100 and 18,540."""
    insides = 26 * 5120 + 2 * 13824
    for name, rank, tokens, largest in (
        ("stage1", 128, 2 * 11040, 2 * 11040),
        ("stage2", 256, 23_100, 23_100),
        ("stage2-post", 256, 18_540, 18_540),
        ("stage3-ode", 256, 3 * 18_540, 11040),
    ):
        memory = forecast(name)
        kept = 2 * (40 * tokens * 5120 + largest * insides)
        assert memory.turns["student"] == memory.learning + kept
        assert memory.learning == pytest.approx(4 * 4_868_416 * rank, rel=0.05)


@pytest.mark.parametrize(
    "name", ["stage1", "stage1-post", "stage2", "stage2-post", "stage3-ode", "stage3", "lora"]
)
def test_every_preset_fits_80_gb_without_sharding(name):
    """Stage 3: student, teacher, critic and average, with heads; writing included."""
    memory = forecast(name)
    assert memory.writing < memory.total < 80 * GB


def test_what_waits_on_the_host_is_not_on_the_device():
    preset = forecast("stage3")
    here = forecast("stage3", "trainer.moments_on_host=false")
    assert here.moments == preset.host - 2 * preset.frozen == 2 * preset.learning
    assert here.total > 80 * GB
    both = forecast("stage3", "stage.offload=false", "trainer.moments_on_host=false")
    assert both.total - here.total == preset.frozen
    assert both.host == 0
    assert both.total < 141 * GB
    alone = forecast("stage3", "stage.adversarial=none", "trainer.moments_on_host=false")
    assert alone.total < 80 * GB


def test_other_ways_to_learn_are_not_forecast():
    with pytest.raises(ValueError, match="recompute"):
        forecast("stage3", "stage.recompute=false", "stage.offload=false")
    for name in ("tiny-stage1", "tiny-codec"):
        with pytest.raises(ValueError, match="forecast"):
            forecast(name)


def test_the_command_prints_it(capsys):
    assert run(["train", "stage3", "--memory"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(forecast("stage3").to_json()))
    assert run(["train", "tiny-stage1", "--memory"]) == 2


def test_counts_are_what_a_small_run_holds(random_models):
    """Parameters, moments and averages of a run on this machine against its forecast."""
    config = stage3_config(random_models)
    changes = {"adapter": LoraConfig(rank=4), "recompute": True}
    config = replace(config, stage=replace(config.stage, **changes))
    memory = training_memory(config)
    stage = config.stage.build(alone(), seed=0, compiled=False)
    players = stage.players(config.trainer.optimizer)
    learners = {name: Learner(player, 0.9, alone()) for name, player in players.items()}
    held = [p for one in learners.values() for p in one.learning.values()]
    assert memory.learning == sum(4 * p.numel() for p in held)
    average = learners["student"].ema
    assert memory.average == sum(4 * w.numel() for w in average.weights.values())
    bases = (parts_of(stage._model)[0], stage._frozen)
    frozen = sum(p.numel() for base in bases for p in base.parameters())
    assert frozen <= memory.frozen / 2 <= 1.5 * frozen  # bfloat16, but for the islands


def test_the_averaged_copy_beside_an_adapter_is_as_small_as_the_adapter(random_models):
    stage = replace(
        stage1_config(random_models / "mid").stage,
        adapter=LoraConfig(rank=2),
        initial=random_models / "mid",
        text_learns=False,
    ).build(alone(), seed=0, compiled=False)
    player = Player(module=stage.model, loss=stage.loss, optimizer=OptimizerConfig())
    learner = Learner(player, 0.9, alone())
    with torch.no_grad():
        for value in learner.ema.weights.values():
            value.add_(1.0)
    averaged = averaged_copy(stage.model, [learner.ema])
    shared = {p.data_ptr() for p in stage.model.parameters() if not p.requires_grad}
    own = {n: p for n, p in averaged.named_parameters() if p.data_ptr() not in shared}
    assert own.keys() == learner.learning.keys()
    for name, value in own.items():
        assert torch.equal(value, learner.ema.weights[name])
    before = [p.detach().clone() for p in averaged.parameters()]
    apart = host_copy(averaged)
    with torch.no_grad():
        for p in apart.parameters():
            p.zero_()
    assert all(torch.equal(a, b) for a, b in zip(averaged.parameters(), before, strict=True))
