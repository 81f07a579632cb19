"""The kernels at the shapes of the 14B model: time against the floor, and the error of each.

    python benchmarks/bench_kernels.py [--json FILE] [--tune] [--small]

Fused element-wise kernels are held against the bytes they must move and the bandwidth of a copy
measured here; matrix products in bfloat16 and in e4m3 (both ways to accumulate) and attention by
each implementation against each other, with the relative error of every one against float32.
Shapes are those of the three scales at 384x640: 540, 2160 and 8640 noisy tokens after 2400 of
history. Data is random: the clock of a GPU falls under real data. About a minute on one H200;
``--small`` runs everything once on a CPU with small shapes, for a test.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from helios import kernels
from helios.kernels import Backend, Scaled, Stream

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


REPLAY = 2.0
"""Milliseconds of work recorded in one graph."""


class Clock:
    """Times operations recorded in a CUDA graph, as the engine runs them.

    Launched one by one, kernels of a few microseconds would wait for the host.
    """

    def __init__(self, device: torch.device, budget: float) -> None:
        self.device, self.budget = device, budget

    def __call__(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Median microseconds of one of ``calls``, which take turns."""
        for call in calls:
            call()
        if self.device.type != "cuda":
            began = time.perf_counter()
            calls[0]()
            return 1e6 * (time.perf_counter() - began)
        rough = max(self._replayed(calls, 1, 3), 1e-3)
        count = max(len(calls), min(200, math.ceil(REPLAY / rough)))
        rounds = max(5, min(40, int(self.budget / (rough * count))))
        return 1e3 * self._replayed(calls, count, rounds)

    def _replayed(self, calls: Sequence[Callable[[], Any]], count: int, rounds: int) -> float:
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


class Bench:
    """Everything that is measured, with the ceilings it is held against."""

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        self.generator = torch.Generator(device).manual_seed(0)
        self.clock = Clock(device, budget=60.0)
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

    def norms(self) -> None:
        for noisy in self.shapes.noisy:
            self._norms_at(noisy)

    def _norms_at(self, noisy: int) -> None:
        s, past, width = self.shapes, self.shapes.history, self.shapes.width
        length = past + noisy
        u, share = 2.0 * length * width, noisy / length
        x, late, wide = Fresh(length, width), Fresh(noisy, width), Fresh(length, s.hidden)
        query = Fresh(length, 3 * width, width)
        angles = self.draw(length, s.channels // 2, dtype=torch.float32)
        tables = (angles.cos(), angles.sin())
        gain = 1 + 0.05 * self.draw(width)
        affine = (gain.float(), 0.05 * self.draw(width, dtype=torch.float32))
        vectors = self.draw(1, 2, 6, width, dtype=torch.float32).mul_(0.2).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        factor = kernels.bound_factor(gain, s.heads)
        # Bytes apart from those of what is normalised, and the share of tokens that is.
        fused: list[tuple[str, float, float, Callable[..., Any], tuple[Any, ...]]] = [
            ("norm + modulation", u, u, kernels.modulated_norm, (x, shift1, scale1, past, EPS)),
            (
                "gate + sum + text norm",
                3 * u,
                u * share,
                kernels.gated_add_layer_norm,
                (x, x, gate1, past, *affine, past, EPS),
            ),
            (
                "text sum + norm + modulation",
                u + 2 * u * share,
                u,
                kernels.text_add_modulated_norm,
                (x, late, past, shift2, scale2, past, EPS),
            ),
            (
                "gate + sum + next norm",
                3 * u,
                u,
                kernels.gated_add_modulated_norm,
                (x, x, gate2, shift1, scale1, past, EPS),
            ),
            ("GELU", 2.0 * length * s.hidden, 2.0 * length * s.hidden, kernels.gelu, (wide,)),
        ]
        for name, fixed, out, function, args in fused:
            self.elementwise(name, length, fixed + out, function, args)
            eight = partial(function, fp8=True)
            self.elementwise(f"{name} e4m3", length, fixed + out / 2, eight, args)
        rotated = (query, gain, *tables, EPS)
        more: list[tuple[str, float, Callable[..., Any], tuple[Any, ...]]] = [
            ("gate + sum", 3 * u, kernels.gated_add, (x, x, gate2, past)),
            ("query norm (text)", 2 * u * share, kernels.rms_norm, (late, gain, EPS)),
            ("query norm + rotation", 2 * u, kernels.norm_rope, rotated),
            ("query norm + rotation e4m3", 1.5 * u, kernels.norm_rope_e4m3, (*rotated, factor)),
            ("values by head e4m3", 2.5 * u, self._heads, (query,)),
            ("rows e4m3", 1.5 * u, kernels.quantise_rows, (x,)),
        ]
        for name, moved, function, args in more:
            self.elementwise(name, length, moved, function, args)
        self._stream_at(length, past, u, share)

    def _stream_at(self, length: int, past: int, u: float, share: float) -> None:
        """The three looks at the sum of a block, which is rounded at the last."""
        width, noisy = self.shapes.width, length - past
        x, late = Fresh(length, width), Fresh(noisy, width)
        affine = (1 + 0.05 * self.draw(width).float(), 0.05 * self.draw(width).float())
        gate1, gate2, shift, scale = self.draw(1, 2, 4, width, dtype=torch.float32).unbind(2)

        def stream(x: Tensor, update: Tensor) -> Stream:
            return Stream(x=x, update=update, gate=gate1, split=past, start=past)

        def text_norm(x: Tensor, update: Tensor, fp8: bool) -> Any:
            return stream(x, update).text_norm(*affine, EPS, fp8=fp8)

        def modulated(x: Tensor, update: Tensor, read: Tensor, fp8: bool) -> Any:
            return stream(x, update).modulated_norm(read, shift, scale, EPS, fp8=fp8)

        def total(x: Tensor, update: Tensor, read: Tensor, last: Tensor) -> Any:
            return stream(x, update).total(read, last, gate2)

        for fp8, suffix, part in ((False, "", 1.0), (True, " e4m3", 0.5)):
            moved = (2 + part) * u * share
            self.elementwise(f"block: text norm{suffix}", length, moved, text_norm, (x, x, fp8))
            moved = (2 + share + part) * u
            args = (x, x, late, fp8)
            self.elementwise(f"block: modulated norm{suffix}", length, moved, modulated, args)
        moved = (4 + share) * u
        self.elementwise("block: sum", length, moved, total, (x, x, late, x))

    def _heads(self, x: Tensor) -> Any:
        return kernels.quantise_heads(x.unflatten(-1, (self.shapes.heads, -1)))

    def products(self) -> None:
        s = self.shapes
        layers = {
            "qkv": (3 * s.width, s.width),
            "out": (s.width, s.width),
            "expand": (s.hidden, s.width),
            "contract": (s.width, s.hidden),
        }
        for name, (outs, ins) in layers.items():
            weight = self.draw(outs, ins).mul_(ins**-0.5)
            bias, eight = 0.05 * self.draw(outs), kernels.quantise_rows(weight)
            for noisy in s.noisy:
                rows = s.history + noisy
                x = self.draw(1, rows, ins)
                exact = x[:, :512].float() @ weight.float().t() + bias.float()
                scaled, work = kernels.quantise_rows(x), 2.0 * rows * outs * ins
                forms: dict[str, Callable[[], Tensor]] = {
                    "bf16": partial(kernels.linear, x, weight, bias),
                    "e4m3 fast": partial(kernels.linear, scaled, eight, bias),
                    "e4m3 slow": partial(
                        kernels.linear, scaled, eight, bias, fast_accumulate=False
                    ),
                }
                for form, call in forms.items():
                    self.operations("product", name, rows, form, work, call, exact)
                if name == "expand":
                    fused = cast(
                        Callable[[], Tensor], partial(kernels.linear_gelu, x, weight, bias)
                    )
                    bent = torch.nn.functional.gelu(exact, approximate="tanh")
                    self.operations("product", name, rows, "bf16 and GELU", work, fused, bent)

                    def apart(x: Tensor = x, weight: Tensor = weight, b: Tensor = bias) -> Tensor:
                        return kernels.gelu(kernels.linear(x, weight, b))

                    self.operations("product", name, rows, "bf16, GELU apart", work, apart, bent)

    def attentions(self) -> None:
        s = self.shapes
        cases = [(s.history + noisy, s.history + noisy, "self") for noisy in s.noisy]
        cases += [(noisy, s.text, "text") for noisy in s.noisy]
        machine = kernels.machine_of(self.device)
        backends: list[Backend] = ["plain"]
        backends += ["flash", "cudnn"] if self.device.type == "cuda" else []
        backends += ["flash3"] if machine.runs_flash3 else []
        for queries, keys, kind in cases:
            joined = self.draw(1, queries, 3, s.heads, s.channels)
            q, k, v = (self.draw(1, count, s.heads, s.channels) for count in (queries, keys, keys))
            v = joined[:, :, 2] if kind == "self" else v
            parts = (t.float().transpose(1, 2) for t in (q[:, :256], k, v))
            exact = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)
            work = 4.0 * queries * keys * s.width
            chosen = kernels.choose(machine, q.dtype, s.channels, keys)
            for backend in backends:
                form = backend + (" *" if backend == chosen else "")
                call = partial(kernels.attention, q, k, v, backend=backend)
                self.operations("attention", kind, queries, form, work, call, exact)
            if kind == "self":
                eight = [kernels.quantise_heads(t) for t in (q, k, v)]
                call = partial(kernels.attention_e4m3, *eight)
                self.operations("attention", kind, queries, "e4m3", work, call, exact)


def relative(out: Any, exact: Any) -> float:
    """``|out - exact| / |exact|`` of the last result: the normalised tokens where there are two."""
    if isinstance(out, tuple) and isinstance(out[1], Tensor) and out[1].dim() == 2:
        out, exact = (t[0].float() * t[1][:, None, :, None] for t in (out, exact))
    if isinstance(out, tuple):
        out, exact = out[-1], exact[-1]
    one, other = (t.dense() if isinstance(t, Scaled) else t.float() for t in (out, exact))
    return float((one - other).norm() / other.norm())


def table(lines: Sequence[Line], bandwidth: float) -> str:
    """Markdown: fused kernels beside their plain forms, then products and attention."""
    rows = [
        f"Copy: {bandwidth / 1e12:.2f} TB/s read and written.",
        "",
        "| kernel | tokens | fused µs | TB/s | of copy | plain µs | error |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = {(o.what, o.tokens): o.microseconds for o in lines if o.form == "plain"}
    for o in lines:
        if o.group == "elementwise" and o.form == "fused":
            share = 100 * o.floor / o.microseconds
            other = plain[o.what, o.tokens]
            rows.append(
                f"| {o.what} | {o.tokens} | {o.microseconds:.1f} | {o.rate / 1e3:.2f} "
                f"| {share:.0f} % | {other:.0f} | {o.error or 0:.0e} |"
            )
    rows += ["", "| product or attention | tokens | form | µs | TFLOP/s | error |"]
    rows += ["|---|---|---|---|---|---|"]
    for o in lines:
        if o.group != "elementwise":
            rows.append(
                f"| {o.what} | {o.tokens} | {o.form} | {o.microseconds:.0f} "
                f"| {o.rate:.0f} | {o.error or 0:.1e} |"
            )
    return "\n".join(rows)


def tune(bench: Bench) -> str:
    """How many tokens a program should take, and how many warps it should have: microseconds."""
    from helios.kernels import norm_triton, rope_triton, stream_triton

    s, past = bench.shapes, bench.shapes.history
    rows = [
        "| kernel | tokens | tokens per program, warps: µs … |",
        "|---|---|---|",
    ]
    for noisy in (min(s.noisy), max(s.noisy)):
        length = past + noisy
        vectors = bench.draw(1, 2, 6, s.width, dtype=torch.float32).unbind(2)
        angles = bench.draw(length, s.channels // 2, dtype=torch.float32)
        gain = 1 + 0.05 * bench.draw(s.width)

        def x(tokens: int = length) -> Tensor:
            return bench.draw(1, tokens, s.width)

        def stream(a: Tensor, b: Tensor, past: int = past, vectors: Any = vectors) -> Stream:
            return Stream(x=a, update=b, gate=vectors[0], split=past, start=past)

        pairs, late = [(x(), x()) for _ in range(4)], x(noisy)
        cases: dict[str, list[Callable[[], Any]]] = {
            "norm + modulation": [
                partial(kernels.modulated_norm, a, vectors[0], vectors[1], past, EPS)
                for a, _ in pairs
            ],
            "block: modulated norm e4m3": [
                partial(stream(a, b).modulated_norm, late, *vectors[1:3], EPS, fp8=True)
                for a, b in pairs
            ],
            "block: sum": [
                partial(stream(a, b).total, late, c, vectors[3])
                for (a, b), (c, _) in zip(pairs, reversed(pairs))
            ],
            "query norm + rotation": [
                partial(kernels.norm_rope, a, gain, angles.cos(), angles.sin(), EPS)
                for a, _ in pairs
            ],
        }
        before = norm_triton.tokens_for, norm_triton.warps_for
        for name, calls in cases.items():
            cells = []
            for tokens in (1, 2, 4, 8):
                for warps in (4, 8, 16):
                    for module in (norm_triton, rope_triton, stream_triton):
                        module.tokens_for = lambda _, n=tokens: n
                        module.warps_for = lambda _, n=warps: n
                    cells.append(f"{tokens},{warps}: {bench.clock(calls):.1f}")
            rows.append(f"| {name} | {length} | {'; '.join(cells)} |")
        for module in (norm_triton, rope_triton, stream_triton):
            module.tokens_for, module.warps_for = before
    return "\n".join(rows)


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "machine": asdict(kernels.machine_of(device)),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--tune", action="store_true", help="try launch parameters as well")
    parser.add_argument("--small", action="store_true", help="small shapes, on the CPU")
    options = parser.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        print("error: the full shapes need a CUDA device; --small runs on a CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.small else "cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    began = time.perf_counter()
    bench = Bench(SMALL if options.small else FULL, device)
    for part in (bench.norms, bench.products, bench.attentions):
        part()
    print(table(bench.lines, bench.bandwidth))
    if options.tune:
        print(tune(bench))
    for line in bench.skipped:
        print(f"not measured: {line}")
    print(f"{json.dumps(environment(device))}, {time.perf_counter() - began:.0f} s")
    if options.json is not None:
        result = {
            "environment": environment(device),
            "bandwidth": bench.bandwidth,
            "lines": [asdict(line) for line in bench.lines],
            "skipped": bench.skipped,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 1 if bench.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
