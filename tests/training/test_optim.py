import math

import pytest
import torch
from torch import nn

from helios.training.optim import (
    Ema,
    OptimizerConfig,
    adamw,
    averaged_copy,
    ema_decay,
    learning_rate,
)


def test_learning_rate_warms_up_then_follows_a_cosine():
    config = OptimizerConfig(lr=2.0, warmup_steps=4, final_share=0.1)
    assert [learning_rate(config, s, 0.0) for s in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert learning_rate(config, 100, 0.5) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(config, 100, 0.25) == pytest.approx(
        2.0 * (0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    )
    assert learning_rate(config, 100, 1.0) == pytest.approx(0.2)
    assert learning_rate(config, 100, 3.0) == pytest.approx(0.2)
    assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=0), 0, 0.0) == 1.0


def test_ema_decay_rises_to_its_highest():
    assert ema_decay(0, 0.999) == pytest.approx(0.1)
    assert ema_decay(8, 0.999) == pytest.approx(0.5)
    assert ema_decay(90, 0.999) == pytest.approx(0.91)
    assert ema_decay(10**6, 0.999) == 0.999


def test_ema_follows_its_formula_and_can_be_held():
    model = nn.Linear(2, 1)
    ema = Ema(model, 0.9)
    average = model.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update(step, torch.tensor(1.0))
        decay = min((1 + step) / (10 + step), 0.9)
        average = decay * average + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.weights["weight"], average)
    held = ema.weights["weight"].clone()
    ema.update(30, torch.tensor(0.0))
    assert torch.equal(ema.weights["weight"], held)
    copy = averaged_copy(model, [ema])
    assert torch.equal(copy.weight, held)
    assert not copy.weight.requires_grad
    assert not torch.equal(model.weight, held)


def test_what_is_frozen_is_neither_averaged_nor_optimized():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    ema = Ema(model, 0.9)
    assert ema.weights.keys() == {"weight"}
    with torch.no_grad():
        model.weight.add_(1.0)
        model.bias.add_(1.0)
    copy = averaged_copy(model, [ema])
    assert torch.equal(copy.bias, model.bias)
    assert torch.equal(copy.weight, ema.weights["weight"])
    (group,) = adamw(model, OptimizerConfig()).param_groups
    assert group["params"][0] is model.weight


def test_only_matrices_decay():
    groups = adamw(nn.Linear(3, 2), OptimizerConfig(weight_decay=0.3)).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [
        (0.3, [2]),
        (0.0, [1]),
    ]


@pytest.mark.parametrize(
    "bad", [{"lr": 0.0}, {"lr": float("nan")}, {"betas": (0.9, 1.0)}, {"final_share": 2.0}]
)
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        OptimizerConfig(**bad)
