"""One step from a noise level to the next, three ways.

A solver is made from a schedule for one stage of one chunk and forgotten after it: UniPC remembers
its last predictions, the few-step rule its start point. All coefficients are Python floats, so a
step reads nothing back from the device (specification "model and sampling", 6.4, 6.5).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from helios.diffusion.schedule import Schedule

__all__ = ["Euler", "Renoise", "Solver", "UniPC"]


class Solver(Protocol):
    """Moves a sample from node ``k`` of its schedule to node ``k + 1``."""

    def step(self, k: int, velocity: Tensor, x: Tensor) -> Tensor:
        """``x`` at node ``k + 1``, given ``x`` and the network's velocity at node ``k``."""
        ...


def _scaled(factor: float, velocity: Tensor) -> Tensor:
    """``factor * velocity`` with both in the dtype of ``velocity``.

    The published schedulers hold their levels in tensors without dimensions, which take the dtype
    of the velocity before the product: in bf16 the level itself is rounded first.
    """
    return torch.tensor(factor, dtype=velocity.dtype).item() * velocity


class Euler:
    """First-order steps along the velocity."""

    def __init__(self, schedule: Schedule) -> None:
        self._sigmas: list[float] = schedule.sigmas.tolist()

    def step(self, k: int, velocity: Tensor, x: Tensor) -> Tensor:
        """Sum in float32, result in the dtype of ``velocity`` (6.4)."""
        change = _scaled(self._sigmas[k + 1] - self._sigmas[k], velocity)
        return (x.float() + change).to(velocity.dtype)


class UniPC:
    """Multistep predictor and corrector of second order on the clean prediction (6.4).

    Steps must be taken in order from ``k = 0``. The first step has order 1 and no corrector, the
    last has order 1.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._sigmas: list[float] = schedule.sigmas.tolist()
        self._signal = [1 - sigma for sigma in self._sigmas]
        self._noise = [max(sigma, 1e-8) for sigma in self._sigmas]
        self._log_ratio = [
            math.log(signal) - math.log(noise)
            for signal, noise in zip(self._signal, self._noise, strict=True)
        ]
        self._steps = len(schedule)
        self._predictions: list[Tensor] = []  # of the nodes k - 2, k - 1
        self._origin: Tensor | None = None  # what the last predictor started from
        self._order = 0  # of the last predictor

    def step(self, k: int, velocity: Tensor, x: Tensor) -> Tensor:
        """Correct the sample at node ``k``, then predict node ``k + 1``; in the dtype of ``x``."""
        clean = x - _scaled(self._sigmas[k], velocity)
        if self._origin is not None:
            x = self._correct(k, clean, self._origin).to(x.dtype)
        self._predictions = [*self._predictions[-1:], clean]
        self._order = min(2, self._steps - k, k + 1)
        self._origin = x
        return self._predict(k, x).to(x.dtype)

    def _first_order(self, k: int, sample: Tensor, clean: Tensor, decay: float) -> Tensor:
        """From node ``k`` to ``k + 1`` as if the clean prediction did not change."""
        ratio = self._noise[k + 1] / self._noise[k]
        return ratio * sample - self._signal[k + 1] * decay * clean

    def _predict(self, k: int, x: Tensor) -> Tensor:
        lam, clean = self._log_ratio, self._predictions[-1]
        h = lam[k + 1] - lam[k]
        decay = math.expm1(-h)
        base = self._first_order(k, x, clean, decay)
        if self._order == 1:
            return base
        ratio = (lam[k - 1] - lam[k]) / h
        slope = (self._predictions[-2] - clean) / ratio
        return base - self._signal[k + 1] * decay * (0.5 * slope)

    def _correct(self, k: int, clean: Tensor, origin: Tensor) -> Tensor:
        lam, before = self._log_ratio, self._predictions[-1]
        h = lam[k] - lam[k - 1]
        decay = math.expm1(-h)
        base = self._first_order(k - 1, origin, before, decay)
        if self._order == 1:
            change = 0.5 * (clean - before)
        else:
            ratio = (lam[k - 2] - lam[k - 1]) / h
            slope = (self._predictions[-2] - before) / ratio
            first, second = _corrector_weights(ratio, h, decay)
            change = first * slope + second * (clean - before)
        return base - self._signal[k] * decay * change


def _corrector_weights(ratio: float, h: float, decay: float) -> tuple[float, float]:
    """Solve ``w0 + w1 = b1``, ``ratio w0 + w1 = b2``; ``ratio`` is negative, so it has one root."""
    first = decay / -h - 1
    second = first / -h - 0.5
    b1, b2 = first / decay, 2 * second / decay
    weight = (b2 - b1) / (ratio - 1)
    return weight, b1 - weight


class Renoise:
    """The few-step rule: predict the clean end, then return to the stage's start point (6.5).

    ``start`` is the sample as it entered the stage. No fresh noise is drawn. Arithmetic is float64;
    the prediction takes the dtype of the velocity, the sample between steps that of ``start``.
    """

    def __init__(self, schedule: Schedule, start: Tensor) -> None:
        self._sigmas: list[float] = schedule.sigmas.tolist()
        self._start = start

    def step(self, k: int, velocity: Tensor, x: Tensor) -> Tensor:
        """The clean prediction, mixed with the start point unless ``k`` is the last step."""
        clean = (x.double() - self._sigmas[k] * velocity.double()).to(velocity.dtype)
        level = self._sigmas[k + 1]
        if k + 2 == len(self._sigmas):
            return clean
        mixed = (1 - level) * clean.double() + level * self._start.double()
        return mixed.to(self._start.dtype)
