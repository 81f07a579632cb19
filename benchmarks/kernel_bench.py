"""How `bench_kernels.py` measures: inputs that no cache holds, a line a form.

A case names a kernel, what it works on and what it must move or compute; `Bench` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from helios import kernels
from helios.evaluation.throughput.clock import KernelClock
from helios.kernels import Scaled

EPS = 1e-6
CACHE = 256 * 2**20
"""Inputs in turn add up to more than this, several times the cache of any GPU."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The sizes of one model."""

    heads: int
    channels: int
    hidden: int
    history: int
    noisy: tuple[int, ...]
    text: int
    copy: int

    @property
    def width(self) -> int:
        return self.heads * self.channels


FULL = Shapes(
    heads=40,
    channels=128,
    hidden=13824,
    history=2400,
    noisy=(540, 2160, 8640),
    text=512,
    copy=2**30,
)
SMALL = Shapes(heads=2, channels=16, hidden=96, history=8, noisy=(4, 9), text=6, copy=2**16)


@dataclass(frozen=True)
class Fresh:
    """An input that every set draws anew: ``[1, tokens, take]``, a part of ``width`` columns."""

    tokens: int
    width: int
    take: int | None = None

    def draw(self, bench: Bench) -> Tensor:
        return bench.draw(1, self.tokens, self.width)[..., : self.take]


@dataclass(frozen=True)
class Line:
    """One measurement.

    Attributes:
        group: elementwise, product or attention.
        what: the kernel.
        tokens: rows it works on.
        form: which implementation.
        microseconds: median.
        floor: microseconds that its bytes or operations take at the measured ceiling.
        rate: GB/s for bytes, TFLOP/s for operations.
        error: relative, against float32.
    """

    group: str
    what: str
    tokens: int
    form: str
    microseconds: float
    floor: float
    rate: float
    error: float | None = None


class Bench:
    """Everything that is measured, with the ceilings it is held against."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        self.generator = torch.Generator(device).manual_seed(0)
        self.clock = KernelClock(device, budget=60.0)
        self.lines: list[Line] = []
        self.skipped: list[str] = []
        self.bandwidth = self._bandwidth()

    def draw(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(dtype)

    def _bandwidth(self) -> float:
        """Bytes per second of a copy, read and written."""
        source = self.draw(self.shapes.copy // 2)
        target = torch.empty_like(source)
        micro = self.clock([lambda: target.copy_(source)] * 2)
        return 2 * source.numel() * source.element_size() / (micro * 1e-6)

    def sets(self, size: int) -> int:
        """How many inputs of ``size`` bytes take turns, so that none is in the cache."""
        return 1 if self.device.type != "cuda" else max(2, min(8, -(-CACHE // max(size, 1))))

    def guarded(self, name: str, measure: Callable[[], None]) -> None:
        """``measure()``; what fails is reported at the end and the rest goes on."""
        try:
            measure()
        except Exception as error:
            self.skipped.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")

    def elementwise(
        self,
        what: str,
        tokens: int,
        moved: float,
        function: Callable[..., Any],
        args: Sequence[Any],
    ) -> None:
        """Both forms of a kernel that moves so many bytes, on inputs that take turns."""
        self.guarded(f"{what}, {tokens}", partial(self._both, what, tokens, moved, function, args))

    def _both(
        self,
        what: str,
        tokens: int,
        moved: float,
        function: Callable[..., Any],
        args: Sequence[Any],
    ) -> None:
        calls = [
            partial(function, *(a.draw(self) if isinstance(a, Fresh) else a for a in args))
            for _ in range(self.sets(int(moved)))
        ]
        with kernels.plain():
            exact = calls[0]()
        # Before anything is repeated: the text sum is allowed to write over its input.
        error = relative(calls[0](), exact)
        del exact
        fast = self.clock(calls)
        with kernels.plain():
            plain = self.clock(calls[:2])
        floor = 1e6 * moved / self.bandwidth
        for form, micro, off in (("fused", fast, error), ("plain", plain, None)):
            rate = moved / micro / 1e3
            self.lines.append(Line("elementwise", what, tokens, form, micro, floor, rate, off))

    def operations(
        self,
        group: str,
        what: str,
        tokens: int,
        form: str,
        work: float,
        call: Callable[[], Tensor],
        exact: Tensor,
    ) -> None:
        """A product or an attention of so many operations; ``exact`` is its first rows."""

        def measure() -> None:
            error = relative(call()[:, : exact.shape[1]], exact)
            micro = self.clock([call] * 2)
            rate = work / micro / 1e6
            self.lines.append(Line(group, what, tokens, form, micro, 0.0, rate, error))

        self.guarded(f"{what} {form}, {tokens}", measure)


def relative(out: Any, exact: Any) -> float:
    """``|out - exact| / |exact|`` of the last result: the normalised tokens where there are two."""
    if isinstance(out, tuple) and isinstance(out[1], Tensor) and out[1].dim() == 2:
        out, exact = (t[0].float() * t[1][:, None, :, None] for t in (out, exact))
    if isinstance(out, tuple):
        out, exact = out[-1], exact[-1]
    one, other = (t.dense() if isinstance(t, Scaled) else t.float() for t in (out, exact))
    return float((one - other).norm() / other.norm())
