"""How long something takes on a device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["KernelClock", "Spread", "per_second", "timed"]

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_REPLAY = 2.0
"""Milliseconds of work recorded in one graph."""
_LOOPS = 3
"""Turns of a plain loop, where there are no graphs."""


@dataclass(frozen=True)
class Spread:
    """Median, least and 90th percentile of some durations in seconds, and their number."""

    median: float
    least: float
    p90: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        ordered = sorted(values)
        ninth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
        return cls(statistics.median(ordered), ordered[0], ninth, len(ordered))

    def to_json(self) -> dict[str, float]:
        """In milliseconds."""
        return {
            "median_ms": round(1e3 * self.median, 3),
            "min_ms": round(1e3 * self.least, 3),
            "p90_ms": round(1e3 * self.p90, 3),
            "count": self.count,
        }


def per_second(unit: str, *rates: float) -> str:
    """Rates with the prefix that suits the largest: ``"756, 740, 690 TFLOP/s"``.

    Args:
        unit: what is done, such as ``"FLOP"`` or ``"B"``.
        rates: how much of it a second.
    """
    finite = [rate for rate in rates if math.isfinite(rate)]
    largest = max(finite, default=1.0)
    size, prefix = next((pair for pair in _PREFIXES if largest >= 0.9995 * pair[0]), (1.0, ""))
    return ", ".join(f"{rate / size:.3g}" for rate in rates) + f" {prefix}{unit}/s"


def timed(call: Callable[[], object], device: torch.device, repeat: int) -> Spread:
    """How long ``call`` takes on ``device``, after one call that does not count."""
    call()
    seconds = []
    for _ in range(repeat):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            call()
            end.record()
            end.synchronize()
            seconds.append(1e-3 * start.elapsed_time(end))
        else:
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    return Spread.of(seconds)


class KernelClock:
    """Times operations recorded in a CUDA graph, as the engine runs them.

    Launched one by one, kernels of a few microseconds would wait for the host. On a CPU: a loop.

    Args:
        device: to measure on.
        budget: milliseconds to spend, about; a few replays are made in any case.
    """

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.budget = device, budget

    def __call__(self, calls: Sequence[Callable[[], object]]) -> float:
        """Median microseconds of one of ``calls``, which take turns."""
        for call in calls:
            call()
        if self.device.type != "cuda":
            return 1e6 * statistics.median(self._looped(call) for call in [*calls] * _LOOPS)
        rough = max(self._replayed(calls, 1, 3), 1e-3)
        count = max(len(calls), min(200, math.ceil(_REPLAY / rough)))
        rounds = max(5, min(40, int(self.budget / (rough * count))))
        return 1e3 * self._replayed(calls, count, rounds)

    @staticmethod
    def _looped(call: Callable[[], object]) -> float:
        """Seconds of one call on a CPU."""
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def _replayed(self, calls: Sequence[Callable[[], object]], count: int, rounds: int) -> float:
        """Median milliseconds of a call, of which ``count`` are recorded, over several replays."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for index in range(count):
                calls[index % len(calls)]()
        graph.replay()
        marks = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
        times = sorted(begin.elapsed_time(end) for begin, end in marks)
        return times[len(times) // 2] / count
