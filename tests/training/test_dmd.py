import pytest
import torch

from helios.diffusion import ScheduleConfig, ShiftLaw
from helios.training.dmd import DynamicRenoise, draw_beta, matching_gradient, matching_loss

LINEAR = ScheduleConfig(dynamic=ShiftLaw(kind="linear"))
PLAIN = ScheduleConfig(stages=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prediction(x, sigma, mean, deviation):
    """The clean sample to expect of a normal distribution at ``x`` and level ``sigma``."""
    signal = 1 - sigma
    gain = signal * deviation**2 / (signal**2 * deviation**2 + sigma**2)
    return mean + gain * (x - signal * mean)


def test_without_a_difference_there_is_no_gradient():
    x, r = torch.randn(2, 3, 4, generator=seeded()), torch.randn(2, 3, 4, generator=seeded(1))
    assert (matching_gradient(x, r, r) == 0).all()
    assert (matching_gradient(r, r, r) == 0).all()  # 0 / 0 moves nothing


def test_the_loss_has_the_gradient_and_each_sample_its_own_norm():
    x = torch.randn(2, 3, 4, generator=seeded()).requires_grad_()
    r, f = (torch.randn(2, 3, 4, generator=seeded(s)) for s in (1, 2))
    gradient = matching_gradient(x, r, f)
    assert not gradient.requires_grad
    for i in range(2):
        norm = (x[i] - r[i]).abs().mean().item()
        torch.testing.assert_close(gradient[i].float(), (f[i] - r[i]) / norm)
    loss = matching_loss(x, gradient)
    assert float(loss) == pytest.approx(0.5 * float(gradient.square().mean()))
    loss.backward()
    torch.testing.assert_close(x.grad, (gradient / x.numel()).float())


def test_of_two_normal_distributions_of_equal_width_it_is_known():
    """``F - R = (m - mu) sigma^2 / ((1 - sigma)^2 s^2 + sigma^2)``, whatever the sample."""
    mean, other, width, sigma = 0.7, -0.4, 1.3, 0.6
    x = torch.randn(1, 500, generator=seeded(), dtype=torch.float64)
    noisy = (1 - sigma) * x + sigma * torch.randn(1, 500, generator=seeded(1), dtype=torch.float64)
    real, fake = (prediction(noisy, sigma, m, width) for m in (other, mean))
    gradient = matching_gradient(x, real, fake)
    known = (mean - other) * sigma**2 / ((1 - sigma) ** 2 * width**2 + sigma**2)
    torch.testing.assert_close(gradient, torch.full_like(x, known) / (x - real).abs().mean())


def test_a_linear_student_becomes_the_data():
    """Scores in closed form; mean and width of the student end at those of the data."""
    mean, width = torch.tensor(0.0), torch.tensor(2.0)
    goal = (1.5, 0.5)
    values = torch.stack((mean, width)).requires_grad_()
    generator = seeded(5)
    optimizer = torch.optim.Adam([values], lr=0.03, betas=(0.0, 0.99))
    law = DynamicRenoise(fade=0.3)
    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / 600)
        x = values[0] + values[1] * torch.randn(64, 32, generator=generator)
        sigma = law.draw(64, step / 600, PLAIN, 1, generator)[:, None]
        noisy = (1 - sigma) * x.detach() + sigma * torch.randn(64, 32, generator=generator)
        real = prediction(noisy, sigma, *goal)
        fake = prediction(noisy, sigma, values[0].detach(), values[1].detach())
        optimizer.zero_grad()
        matching_loss(x, matching_gradient(x, real, fake)).backward()
        optimizer.step()
    assert values.tolist() == pytest.approx(goal, abs=0.03)


@pytest.mark.parametrize(("a", "b"), [(4.0, 1.5), (2.5, 1.25), (1.0, 1.0), (1.0, 3.0)])
def test_beta_numbers_have_their_moments(a, b):
    drawn = draw_beta(200_000, a, b, seeded()).double()
    assert 0 <= drawn.min() <= drawn.max() <= 1
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * (variance / 200_000) ** 0.5 + 2.5e-4)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.02)


def test_levels_go_from_high_to_uniform_by_half_a_cosine():
    law = DynamicRenoise(fade=0.5)
    assert law.parameters(0.0) == (4.0, 1.5)
    assert law.parameters(0.25) == pytest.approx((2.5, 1.25))
    assert law.parameters(0.125) == pytest.approx((1 + 3 * 0.8535534, 1 + 0.5 * 0.8535534))
    assert law.parameters(0.5) == law.parameters(1.0) == (1.0, 1.0)
    assert DynamicRenoise(fade=0.0).parameters(0.0) == (1.0, 1.0)
    # The published figures: means .727 and .5 become .837 and .657 (training.md, 6.5).
    means = torch.tensor([4 / 5.5, 0.5], dtype=torch.float64)
    moved = LINEAR.shifted(means, 8640).tolist()
    assert moved == pytest.approx([0.837, 0.657], abs=1e-3)


def test_levels_are_shifted_and_bounded():
    drawn = DynamicRenoise(fade=0.0).draw(20_000, 0.0, LINEAR, 8640, seeded())
    assert float(drawn.min()) == pytest.approx(0.02)
    assert float(drawn.max()) == pytest.approx(0.98)
    assert float(drawn.median()) == pytest.approx(0.657, abs=0.01)


@pytest.mark.parametrize("bad", [{"alpha": 0.5}, {"fade": 2.0}, {"low": 0.0}, {"high": 1.0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError):
        DynamicRenoise(**bad)
