from collections import Counter

import pytest
import torch

from helios.diffusion import Pyramid, ScheduleConfig, ShiftLaw, sample, stage_table
from helios.training.rollout import draw_exits, simulate

PLAN = Pyramid(steps=(2, 2, 2), solver="renoise")
SCHEDULE = ScheduleConfig(dynamic=ShiftLaw(kind="linear"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


NOISE = torch.randn(1, 2, 9, 8, 8, generator=seeded())


class Student:
    """A field with one parameter per stage, which knows when it was asked with gradients."""

    def __init__(self):
        self.weights = torch.ones(3, requires_grad=True)
        self.asked = []

    def __call__(self, x, timestep):
        bands = [band.timestep_min - 1 for band in stage_table(SCHEDULE)]
        stage = next(k for k, low in enumerate(bands) if float(timestep[0]) >= low)
        self.asked.append((stage, torch.is_grad_enabled()))
        return self.weights[stage] * torch.sin(x) + x


@pytest.mark.parametrize("amplify", [False, True])
def test_it_is_the_samplers_own_path(amplify):
    plan = Pyramid(steps=(2, 2, 2), solver="renoise", amplify=amplify)
    student = Student()
    with torch.no_grad():
        made = simulate(student, plan, NOISE, SCHEDULE, seeded(1))
        assert torch.equal(made, sample(student, plan, NOISE, SCHEDULE, seeded(1)))
    for steps in (1, 2):  # leaving early is sampling with fewer steps where their levels agree
        exits = (1, 1, 1) if steps == 1 else (2, 2, 2)
        few = Pyramid(steps=(steps,) * 3, solver="renoise")
        with torch.no_grad():
            left = simulate(student, PLAN, NOISE, SCHEDULE, seeded(1), exits=exits)
            torch.testing.assert_close(left, sample(student, few, NOISE, SCHEDULE, seeded(1)))


def test_one_step_of_each_stage_has_a_gradient():
    student = Student()
    simulate(student, PLAN, NOISE, SCHEDULE, seeded(1), exits=(2, 1, 2))
    assert student.asked == [(0, False), (0, True), (1, True), (2, False), (2, True)]
    student.asked.clear()
    with torch.no_grad():
        simulate(student, PLAN, NOISE, SCHEDULE, seeded(1), exits=(2, 1, 2))
    assert not any(learns for _, learns in student.asked)


@pytest.mark.parametrize(
    ("exits", "reached"),
    [
        ((1, 1, 1), {0, 1, 2}),
        ((2, 1, 1), {0, 1, 2}),
        ((1, 2, 1), {1, 2}),
        ((1, 1, 2), {2}),
        ((2, 2, 2), {2}),
    ],
)
def test_the_gradient_crosses_into_a_stage_that_is_left_at_once(exits, reached):
    student = Student()
    simulate(student, PLAN, NOISE, SCHEDULE, seeded(1), exits=exits).square().sum().backward()
    assert {k for k in range(3) if student.weights.grad[k] != 0} == reached


def test_weights_get_their_gradient_under_autocast():
    """Steps without gradients come first and cast the same weights."""
    layer = torch.nn.Conv3d(2, 2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        made = simulate(lambda x, _: layer(x), PLAN, NOISE, SCHEDULE, seeded(1), exits=(2, 2, 2))
    made.float().square().mean().backward()
    for parameter in layer.parameters():
        assert float(parameter.grad.abs().sum()) > 0


def test_exits_are_uniform_and_independent():
    generator, n = seeded(3), 6000
    plan = Pyramid(steps=(1, 2, 2), solver="renoise", amplify=True)
    drawn = [draw_exits(plan, generator) for _ in range(n)]
    counts = Counter(drawn)
    assert len(counts) == 2 * 4 * 4
    expected = n / len(counts)
    chi = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi < 31 + 5 * (2 * 31) ** 0.5
