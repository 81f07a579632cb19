"""The protocol on arms whose speed is known, and on the smallest real ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from helios.evaluation import (
    Arm,
    BenchConfig,
    Subject,
    Visit,
    bench,
    hardware,
    report,
    visit_of,
)
from helios.evaluation.throughput.clock import Spread
from helios.evaluation.throughput.subject import reference_velocity

CPU = torch.device("cpu")


class Clockwork(Arm):
    """Takes a known time for every chunk and answers what it is told to."""

    kind = "exact"

    def __init__(self, name: str, made: Subject, pause: float, error: float) -> None:
        self.name, self.subject, self.pause, self.error = name, made, pause, error
        self.visits: list[tuple[int, ...]] = []

    def run(self, steps: tuple[int, ...], chunks: int, seed: int) -> Visit:
        self.visits.append(steps)
        return Visit(9.0, [9.0] + [self.pause] * (chunks - 2), torch.ones(2))

    def velocity(self, x: Tensor, timestep: Tensor) -> Tensor:
        true = reference_velocity(self.subject, [(x, timestep)])[0]
        return true * (1 + self.error)

    def frames(self, latents: Tensor) -> Tensor:
        return self.subject.reference_frames()

    def decode(self, latents: Tensor) -> Tensor:
        time.sleep(0.001)
        return latents

    def modules(self) -> Sequence[nn.Module]:
        return (self.subject.transformer, self.subject.transformer)


def test_figures_are_those_of_the_arms(subject) -> None:
    made = subject()
    arms = [Clockwork("fast", made, 0.5, 0.01), Clockwork("slow", made, 1.0, 0.0)]
    arms[1].kind = "baseline"
    config = BenchConfig(plans=((1, 1, 1),), warm=2, chunks=3, rounds=2, forwards=1)
    result = bench(made, [lambda arm=arm: arm for arm in arms], config)
    fast, slow = result["arms"]["fast"], result["arms"]["slow"]
    row = fast["plans"]["1,1,1"]
    # The first two chunks of a visit are warm-up, so their nine seconds count nowhere.
    assert row["frames_per_second"] == 66.0
    assert (row["count"], row["min_ms"], row["p90_ms"]) == (6, 500.0, 500.0)
    assert [part["relative_l2"] for part in fast["error"]] == pytest.approx([0.01] * 3, rel=1e-4)
    assert max(part["relative_l2"] for part in slow["error"]) == 0
    parameters = sum(p.numel() * p.element_size() for p in made.transformer.parameters())
    assert fast["weight_bytes"] == parameters  # the shared one counts once
    result["hardware"] = hardware(CPU)
    text = report(result)
    assert "| fast | exact | 66.00 | 2.00 x |" in text
    assert "floor" not in text  # nobody knows the peak of this machine
    result["floor"]["peak_flops_per_second"] = 1e12
    assert "floor in bfloat16 at 1 TFLOP/s" in report(result)
    forwards = result["floor"]["flops"][:3]
    assert forwards == sorted(forwards)


def test_order_turns_round(subject) -> None:
    made, seen = subject(), []

    class Told(Clockwork):
        def run(self, steps: tuple[int, ...], chunks: int, seed: int) -> Visit:
            seen.append(self.name)
            return super().run(steps, chunks, seed)

    arms = [Told("a", made, 1.0, 0.0), Told("b", made, 1.0, 0.0)]
    config = BenchConfig(plans=((1, 1, 1),), warm=1, chunks=1, rounds=2, forwards=1)
    bench(made, [lambda arm=arm: arm for arm in arms], config)
    assert seen == ["a", "b", "a", "b", "b", "a"]


def test_an_arm_that_cannot_be_made_is_named_and_costs_nothing_else(subject) -> None:
    def broken() -> Arm:
        raise RuntimeError("no such hardware\nand more")

    made = subject()
    config = BenchConfig(plans=((1, 1, 1),), warm=1, chunks=1, rounds=1, forwards=1)
    result = bench(made, [broken, lambda: Clockwork("a", made, 1.0, 0.0)], config)
    assert result["left_out"] == ["broken: RuntimeError: no such hardware"]
    assert list(result["arms"]) == ["a"]


def test_nothing_is_begun_after_the_budget(subject) -> None:
    made = subject()
    config = BenchConfig(plans=((1, 1, 1),), budget=0.0)
    result = bench(made, [lambda: Clockwork("a", made, 1.0, 0.0)], config)
    assert result["arms"] == {}
    assert result["left_out"] == ["an arm: no time left"]


def test_reference_is_the_model_in_float32(subject) -> None:
    narrow = subject(torch.bfloat16)
    x, told = narrow.noisy(1), narrow.told(742)
    expected = reference_velocity(narrow, [(x, told)])[0]
    widened = narrow.transformer.float()
    with torch.no_grad():
        answer = widened(x.float(), told, narrow.text.float(), narrow.window)
    torch.testing.assert_close(expected, answer)


def test_a_long_visit_tells_whether_it_is_steady(subject) -> None:
    class Slowing(Clockwork):
        def run(self, steps: tuple[int, ...], chunks: int, seed: int) -> Visit:
            seconds = [1.0] * (chunks - 21) + [1.1] * 20
            return Visit(1.0, seconds, torch.ones(2), None, tuple(range(chunks)))

    made = subject()
    config = BenchConfig(plans=((1, 1, 1),), warm=20, chunks=40, rounds=1, forwards=1)
    result = bench(made, [lambda: Slowing("a", made, 1.0, 0.0)], config)
    steady = result["arms"]["a"]["plans"]["1,1,1"]["steadiness"]
    assert steady == {
        "chunks": 40,
        "early_frames_per_second": 33.0,
        "late_frames_per_second": 30.0,
        "time_ratio": 1.1,
        "memory_bytes": 20,
        "memory_growth_bytes": 39,
    }
    result["hardware"] = hardware(CPU)
    assert "33.00 frames/s in the first 20, 30.00 in the last 20 (1.100 times" in report(result)


def test_visits_and_spreads() -> None:
    visit = visit_of([1.0, 4.0, 5.0, 7.0], torch.ones(2), 2.0)
    assert (visit.first, visit.seconds, visit.first_frame) == (3.0, [1.0, 2.0], 2.0)
    spread = Spread.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (spread.median, spread.least, spread.p90, spread.count) == (3.0, 1.0, 5.0, 5)


@pytest.mark.parametrize("field", ["warm", "chunks", "rounds", "forwards"])
def test_config_refuses_nothing_to_measure(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        BenchConfig(**{field: 0})
