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
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios import kernels
from helios.kernels import Backend, Scaled

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


@dataclass(frozen=True, kw_only=True)
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


class Clock:
    """Times operations by events, between two of which nothing waits for the host."""

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
        torch.cuda.synchronize()
        first = self._once(calls, 3)
        rounds = max(5, min(60, int(self.budget / max(sum(first) / len(first), 1e-6))))
        times = sorted(self._once(calls, rounds))
        return 1e3 * times[len(times) // 2]

    def _once(self, calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        """Milliseconds of each round."""
        marks = []
        for index in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            calls[index % len(calls)]()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in marks]


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

    def elementwise(self, what: str, tokens: int, moved: float, make: Callable[[], Any]) -> None:
        """Both forms of a kernel; ``make`` draws inputs and gives the call."""
        calls = [make() for _ in range(self.sets(int(moved)))]
        floor = 1e6 * moved / self.bandwidth
        with kernels.plain():
            exact = calls[0]()
        # Before anything is repeated: the text sum is allowed to write over its input.
        error = relative(calls[0](), exact)
        del exact
        fast = self.clock(calls)
        with kernels.plain():
            plain = self.clock(calls[:2])
        for form, micro, off in (("fused", fast, error), ("plain", plain, None)):
            rate = moved / micro / 1e3
            line = Line(
                group="elementwise",
                what=what,
                tokens=tokens,
                form=form,
                microseconds=micro,
                floor=floor,
                rate=rate,
                error=off,
            )
            self.lines.append(line)

    def timed(
        self,
        group: str,
        what: str,
        tokens: int,
        form: str,
        work: float,
        call: Callable[[], Any],
        error: float | None,
    ) -> None:
        micro = self.clock([call] * 2)
        line = Line(
            group=group,
            what=what,
            tokens=tokens,
            form=form,
            microseconds=micro,
            floor=0.0,
            rate=work / micro / 1e6,
            error=error,
        )
        self.lines.append(line)

    def norms(self) -> None:
        for noisy in self.shapes.noisy:
            self._norms_at(noisy)

    def _norms_at(self, noisy: int) -> None:
        s = self.shapes
        width, past = s.width, s.history
        length = past + noisy
        u = 2.0 * length * width
        fp8 = {False: 1.0, True: 0.5}
        angles = self.draw(length, s.channels // 2, dtype=torch.float32)
        tables = (angles.cos(), angles.sin())
        gain = 1 + 0.05 * self.draw(width)
        wide, offset = gain.float(), 0.05 * self.draw(width, dtype=torch.float32)
        rows = self.draw(1, 2, 6, width, dtype=torch.float32).mul_(0.2).unbind(2)
        factor = kernels.bound_factor(gain, s.heads)

        def x(tokens: int = length) -> Tensor:
            return self.draw(1, tokens, width)

        def qkv() -> Tensor:
            return self.draw(1, length, 3 * width)[..., :width]

        for eight, out in fp8.items():
            tag = " e4m3" if eight else ""
            cases: list[tuple[str, float, Callable[[], Any]]] = [
                (
                    f"norm + modulation{tag}",
                    (1 + out) * u,
                    lambda e=eight: partial(
                        kernels.modulated_norm, x(), rows[0], rows[1], past, EPS, fp8=e
                    ),
                ),
                (
                    f"gate + sum + text norm{tag}",
                    3 * u + out * u * noisy / length,
                    lambda e=eight: partial(
                        kernels.gated_add_layer_norm,
                        x(),
                        x(),
                        rows[2],
                        past,
                        wide,
                        offset,
                        past,
                        EPS,
                        fp8=e,
                    ),
                ),
                (
                    f"text sum + norm + modulation{tag}",
                    (1 + out) * u + 2 * u * noisy / length,
                    lambda e=eight: partial(
                        kernels.text_add_modulated_norm,
                        x(),
                        x(noisy),
                        past,
                        rows[3],
                        rows[4],
                        past,
                        EPS,
                        fp8=e,
                    ),
                ),
                (
                    f"gate + sum + next norm{tag}",
                    (3 + out) * u,
                    lambda e=eight: partial(
                        kernels.gated_add_modulated_norm,
                        x(),
                        x(),
                        rows[5],
                        rows[0],
                        rows[1],
                        past,
                        EPS,
                        fp8=e,
                    ),
                ),
                (
                    f"GELU{tag}",
                    (1 + out) * 2.0 * length * s.hidden,
                    lambda e=eight: partial(kernels.gelu, self.draw(1, length, s.hidden), fp8=e),
                ),
            ]
            for name, moved, make in cases:
                self.guarded(name, partial(self.elementwise, name, length, moved, make))
        more: list[tuple[str, float, Callable[[], Any]]] = [
            (
                "gate + sum",
                3 * u,
                lambda: partial(kernels.gated_add, x(), x(), rows[5], past),
            ),
            (
                "query norm (text)",
                2 * u * noisy / length,
                lambda: partial(kernels.rms_norm, x(noisy), gain, EPS),
            ),
            (
                "query norm + rotation",
                2 * u,
                lambda: partial(kernels.norm_rope, qkv(), gain, *tables, EPS),
            ),
            (
                "query norm + rotation e4m3",
                1.5 * u,
                lambda: partial(kernels.norm_rope_e4m3, qkv(), gain, *tables, EPS, factor),
            ),
            (
                "values by head e4m3",
                2.5 * u,
                lambda: partial(kernels.quantise_heads, qkv().unflatten(-1, (s.heads, s.channels))),
            ),
            ("rows e4m3", 1.5 * u, lambda: partial(kernels.quantise_rows, x())),
        ]
        for name, moved, make in more:
            self.guarded(name, partial(self.elementwise, name, length, moved, make))

    def products(self) -> None:
        s = self.shapes
        layers = {
            "qkv": (3 * s.width, s.width),
            "out": (s.width, s.width),
            "expand + GELU": (s.hidden, s.width),
            "contract": (s.width, s.hidden),
        }
        for name, (outs, ins) in layers.items():
            weight = self.draw(outs, ins).mul_(ins**-0.5)
            bias, eight = 0.05 * self.draw(outs), kernels.quantise_rows(weight)
            for noisy in s.noisy:
                rows = s.history + noisy
                x = self.draw(1, rows, ins)
                some = slice(0, min(rows, 512))
                exact = x[:, some].float() @ weight.float().t() + bias.float()
                work = 2.0 * rows * outs * ins
                scaled = kernels.quantise_rows(x)
                forms: dict[str, Callable[[], Any]] = {
                    "bf16": partial(kernels.linear, x, weight, bias),
                    "e4m3 fast": partial(kernels.linear, scaled, eight, bias),
                    "e4m3 slow": partial(
                        kernels.linear, scaled, eight, bias, fast_accumulate=False
                    ),
                }
                if "GELU" in name:
                    wide = torch.nn.functional.gelu(exact, approximate="tanh")
                    forms["bf16 with GELU"] = partial(kernels.linear_gelu, x, weight, bias)
                for form, call in forms.items():
                    target = wide if "with GELU" in form else exact
                    self.guarded(
                        f"{name} {form}",
                        partial(self._product, name, rows, form, work, call, target, some),
                    )

    def _product(
        self,
        name: str,
        rows: int,
        form: str,
        work: float,
        call: Callable[[], Tensor],
        target: Tensor,
        some: slice,
    ) -> None:
        error = relative(call()[:, some], target)
        self.timed("product", name, rows, form, work, call, error)

    def attentions(self) -> None:
        s = self.shapes
        cases = [(s.history + noisy, s.history + noisy, "self") for noisy in s.noisy]
        cases += [(noisy, s.text, "text") for noisy in s.noisy]
        machine = kernels.machine_of(self.device)
        backends: Iterable[Backend] = ("plain", "flash", "cudnn", "flash3")
        for queries, keys, kind in cases:
            joined = self.draw(1, queries, 3, s.heads, s.channels)
            q = self.draw(1, queries, s.heads, s.channels)
            k = self.draw(1, keys, s.heads, s.channels)
            v = joined[:, :, 2] if kind == "self" else self.draw(1, keys, s.heads, s.channels)
            some = slice(0, min(queries, 256))
            parts = (t.float().transpose(1, 2) for t in (q[:, some], k, v))
            exact = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)
            work = 4.0 * queries * keys * s.width
            chosen = kernels.choose(machine, q.dtype, s.channels, keys)
            for backend in backends:
                if backend == "flash3" and not machine.runs_flash3:
                    continue
                if backend in ("flash", "cudnn") and self.device.type != "cuda":
                    continue
                form = backend + (" *" if backend == chosen else "")
                call = partial(kernels.attention, q, k, v, backend=backend)
                self.guarded(
                    f"attention {form}",
                    partial(self._mixed, kind, queries, form, work, call, exact, some),
                )
            if kind == "self":
                eight = [kernels.quantise_heads(t) for t in (q, k, v)]
                call = partial(kernels.attention_e4m3, *eight)
                self.guarded(
                    "attention e4m3",
                    partial(self._mixed, kind, queries, "e4m3", work, call, exact, some),
                )

    def _mixed(
        self,
        kind: str,
        queries: int,
        form: str,
        work: float,
        call: Callable[[], Tensor],
        exact: Tensor,
        some: slice,
    ) -> None:
        error = relative(call()[:, some], exact)
        self.timed("attention", kind, queries, form, work, call, error)


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
    from helios.kernels import norm_triton, rope_triton

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

        pairs = [(x(), x()) for _ in range(4)]
        cases: dict[str, list[Callable[[], Any]]] = {
            "norm + modulation": [
                partial(kernels.modulated_norm, a, vectors[0], vectors[1], past, EPS)
                for a, _ in pairs
            ],
            "gate + sum + next norm e4m3": [
                partial(kernels.gated_add_modulated_norm, a, b, *vectors[:3], past, EPS, fp8=True)
                for a, b in pairs
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
                    for module in (norm_triton, rope_triton):
                        module.tokens_for = lambda _, n=tokens: n
                        module.warps_for = lambda _, n=warps: n
                    cells.append(f"{tokens},{warps}: {bench.clock(calls):.1f}")
            rows.append(f"| {name} | {length} | {'; '.join(cells)} |")
        for module in (norm_triton, rope_triton):
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
