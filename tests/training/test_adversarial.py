import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from helios.history import HistoryWindow
from helios.training.adversarial import (
    AdversarialConfig,
    Crop,
    Discriminator,
    cached_gradient,
    draw_crop,
    heads_loss,
    judge,
    student_loss,
)

CONFIG = AdversarialConfig(blocks=(0, 1), width=8, groups=2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def critic(pipeline):
    model = copy.deepcopy(pipeline.transformer)
    torch.manual_seed(0)
    return model, Discriminator(CONFIG, model.config.width, model.config.out_channels)


def inputs(batch=2, rows=16, columns=16):
    frames = torch.randn(batch, 16, 20, rows, columns, generator=seeded(1))
    window = HistoryWindow(frames, torch.ones(batch, 20, dtype=torch.bool))
    x = torch.randn(batch, 16, 9, rows, columns, generator=seeded(2))
    text = torch.randn(batch, 5, 24, generator=seeded(3))
    return x, torch.full((batch,), 400.0), text, window


def test_there_is_a_logit_for_every_head(critic):
    model, heads = critic
    x, timestep, text, window = inputs()
    logits = judge(model, heads, x, timestep, text, window, Crop(2, 4, 8, 8))
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    idle = [name for name, p in heads.named_parameters() if p.grad is None]
    assert idle == []


def test_a_crop_is_judged_where_it_lies(critic):
    model, heads = critic
    x, timestep, text, window = inputs()
    x[:, :, :, 8:, 8:] = x[:, :, :, :8, :8]
    with torch.no_grad():
        corners = [
            judge(model, heads, x, timestep, text, window, Crop(place, place, 8, 8))
            for place in (0, 8)
        ]
    assert not torch.allclose(*corners)


def test_crops_are_even_and_equally_often_everywhere():
    generator = seeded()
    drawn = Counter(draw_crop(16, 24, 0.5, generator) for _ in range(7000))
    assert {crop[2:] for crop in drawn} == {(8, 12)}
    assert {crop[0] for crop in drawn} == {0, 2, 4, 6, 8}
    assert {crop[1] for crop in drawn} == {0, 2, 4, 6, 8, 10, 12}
    expected = 7000 / 35
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 34 + 5 * 68**0.5
    assert draw_crop(8, 12, 1.0, generator) == (0, 0, 8, 12)
    x = torch.arange(16 * 24.0).view(16, 24).expand(1, 1, 9, 16, 24)
    assert Crop(2, 4, 8, 12).of(x)[0, 0, 0, 0, 0] == 2 * 24 + 4


def test_the_cached_gradient_is_that_of_autograd(critic):
    model, heads = critic
    x, timestep, text, window = inputs()
    scale = torch.tensor(1.5, requires_grad=True)

    def loss(sample):
        made = judge(model, heads, sample, timestep, text, window, Crop(0, 4, 8, 8))
        return student_loss(made, CONFIG)

    plain = loss(scale * x)
    (direct,) = torch.autograd.grad(3 * plain, scale)
    for parameter in (*model.parameters(), *heads.parameters()):
        parameter.grad = None
    cached = cached_gradient(loss, scale * x)
    assert float(cached) == float(plain)
    (3 * cached).backward()
    torch.testing.assert_close(scale.grad, direct)
    assert all(p.grad is None for p in (*model.parameters(), *heads.parameters()))


def test_both_sides_pull_in_their_own_direction():
    low, high = torch.tensor([[-1.0]]), torch.tensor([[1.0]])
    none = torch.zeros(1, 1)
    for better, worse in (((high, low), (low, low)), ((high, low), (high, high))):
        losses = [sum(heads_loss(*pair, pair[1], CONFIG).values()) for pair in (better, worse)]
        assert losses[0] < losses[1]
    assert student_loss(low, CONFIG) < student_loss(high, CONFIG)
    parts = heads_loss(none, none, none, CONFIG)
    assert float(parts["made"]) == pytest.approx(0.01 * F.softplus(torch.tensor(0.0)).item())
    assert float(student_loss(none, CONFIG)) == pytest.approx(0.05 * 0.693147, rel=1e-5)


def test_r1_of_a_linear_head_is_known_and_of_a_constant_one_nothing():
    """``100 (w n sigma)^2``, whose mean over noise is ``100 sigma^2 |w|^2``."""
    w = torch.randn(30, generator=seeded())
    x, n = torch.randn(4000, 30, generator=seeded(1)), torch.randn(4000, 30, generator=seeded(2))
    twin = x + CONFIG.r1_sigma * n
    r1 = heads_loss(torch.zeros(1), x @ w, twin @ w, CONFIG)["r1"]
    torch.testing.assert_close(r1, 100 * (0.1 * n @ w).square().mean(), rtol=1e-3, atol=0)
    assert float(r1) == pytest.approx(100 * 0.01 * float(w.square().sum()), rel=0.1)
    same = torch.full((4000,), 0.3)
    assert heads_loss(same, same, same, CONFIG)["r1"] == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"blocks": ()},
        {"blocks": (1, 1)},
        {"width": 10, "groups": 4},
        {"crop": 0.0},
        {"r1_sigma": -1},
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError):
        AdversarialConfig(**bad)
