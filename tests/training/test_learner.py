"""Several that learn in turn: each has its own optimizer, rate and count."""

import json

import pytest
import torch
from torch import nn

from helios.training import OptimizerConfig, Trainer, checkpoint
from helios.training.learner import Learner
from helios.training.optim import ema_decay
from helios.training.stage import Player

from .toys import LineStage, alone, run_config, same, weights_of


class Duel(LineStage):
    """A line that follows another line; the other one follows the data and moves more often."""

    def __init__(self, world, every=3):
        super().__init__(world)
        self.every = every
        self.critic = nn.Linear(3, 1)
        self.asked = []

    def players(self, optimizer):
        own = OptimizerConfig(lr=0.02, warmup_steps=0, betas=(0.0, 0.999))
        return {
            "student": Player(module=self.model, loss=self.student_loss, optimizer=optimizer),
            "critic": Player(
                module=self.critic, loss=self.critic_loss, optimizer=own, averaged=False
            ),
        }

    def turns(self, step):
        return ("student", "critic") if step % self.every == 0 else ("critic",)

    def student_loss(self, batch):
        self.asked.append("student")
        return (self.model(batch.x) - self.critic(batch.x).detach()).square().mean(), {}

    def critic_loss(self, batch):
        self.asked.append("critic")
        error = (self.critic(batch.x) - batch.x.sum(1, keepdim=True)).square().mean()
        return error, {"half": error / 2}


def trained(folder, resume=None, **changes):
    trainer = Trainer(Duel(alone()), run_config(**changes), alone(), folder)
    if resume is not None:
        trainer.resume(resume)
    trainer.run()
    return trainer


def test_players_learn_in_turn_each_with_its_own_optimizer(tmp_path):
    trainer = trained(tmp_path, steps=7)
    assert trainer.stage.asked == ["student", "critic"] + ["critic"] * 2 + [
        "student", "critic", "critic", "critic", "student", "critic",
    ]  # fmt: skip
    counts = {name: learner.updates for name, learner in trainer._learners.items()}
    assert counts == {"student": 3, "critic": 7}
    moments = trainer._learners["critic"].optimizer.state[trainer.stage.critic.weight]
    assert float(moments["step"]) == 7
    assert trainer.weights.keys() == dict(trainer.stage.model.named_parameters()).keys()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    named = {"student_loss", "critic_loss", "critic_half", "student_lr", "critic_lr"}
    assert named <= lines[0].keys()
    assert lines[0]["critic_lr"] == 0.02


def test_the_average_counts_the_updates_of_its_own_player(tmp_path):
    stage = Duel(alone())
    trainer = Trainer(stage, run_config(), alone(), tmp_path)
    name, parameter = next(iter(stage.model.named_parameters()))
    average = parameter.detach().clone()
    updates = 0
    for step in range(7):
        trainer._one_step(step / 10)
        trainer.step += 1
        if step % 3 == 0:
            average += (1 - ema_decay(updates, 0.999)) * (parameter.detach() - average)
            updates += 1
    torch.testing.assert_close(trainer.weights[name], average)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    whole = trained(tmp_path / "a", steps=8, checkpoint_every=4)
    middle = tmp_path / "a/checkpoints/step-00000004"
    assert checkpoint.verify(middle)["info"]["updates"] == {"student": 2, "critic": 4}
    again = trained(tmp_path / "b", resume=middle, steps=8, checkpoint_every=4)
    assert same(weights_of(whole), weights_of(again))


def test_moments_that_wait_on_the_host_change_nothing(tmp_path):
    near = trained(tmp_path / "a", steps=6, checkpoint_every=3)
    away = trained(tmp_path / "b", steps=6, moments_on_host=True)
    assert same(weights_of(near), weights_of(away))
    middle = tmp_path / "a/checkpoints/step-00000003"
    resumed = trained(tmp_path / "c", resume=middle, steps=6, moments_on_host=True)
    assert same(weights_of(near), weights_of(resumed))
    state = away._learners["critic"].optimizer.state[away.stage.critic.weight]
    held = away._learners["critic"]._host.values()
    assert all(any(value is one for one in held) for value in state.values())


@pytest.mark.parametrize("limit", [0.5, 10.0])
def test_the_configured_limit_is_the_one_that_clips(limit):
    """Not one that some engine's own file holds (training.md, 11, F2)."""
    line = nn.Linear(4, 1, bias=False)
    optimizer = OptimizerConfig(clip=limit)
    player = Player(module=line, loss=lambda batch: (line(batch).sum(), {}), optimizer=optimizer)
    learner = Learner(player, 0.9, alone())
    line.weight.grad = torch.full((1, 4), 3.0)
    assert float(learner.clip()) == pytest.approx(6.0)
    assert float(line.weight.grad.norm()) == pytest.approx(min(limit, 6.0), rel=1e-4)
