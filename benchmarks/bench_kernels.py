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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from kernel_bench import EPS, FULL, SMALL, Bench, Fresh, Line
from kernel_tuning import tune
from torch import Tensor

from helios import kernels
from helios.evaluation.throughput.clock import per_second
from helios.kernels import Backend, Stream


class Kernels(Bench):
    """Every kernel of the package at the shapes of one model."""

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
            ("rows e4m3, mean added", 1.5 * u, kernels.quantise_rows, (x, affine[1][None])),
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
        return kernels.quantise_centred(x.unflatten(-1, (self.shapes.heads, -1)))[0]

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
            if kind == "self":
                # Values have much in common in deep blocks; sums of e4m3 products mind that.
                shared = self.draw(1, 1, s.heads, s.channels)
                v = joined[:, :, 2].mul_(0.8).add_(0.6 * shared)
            parts = (t.float().transpose(1, 2) for t in (q[:, :256], k, v))
            exact = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)
            work = 4.0 * queries * keys * s.width
            chosen = kernels.choose(machine, q.dtype, s.channels, keys)
            for backend in backends:
                form = backend + (" *" if backend == chosen else "")
                call = partial(kernels.attention, q, k, v, backend=backend)
                self.operations("attention", kind, queries, form, work, call, exact)
            if kind == "self":
                eight = [kernels.quantise_heads(t) for t in (q, k)]
                values = {
                    "e4m3, values as they are": (kernels.quantise_heads(v), None),
                    "e4m3": kernels.quantise_centred(v),
                }
                for form, value in values.items():
                    call = partial(kernels.attention_e4m3, *eight, *value)
                    self.operations("attention", kind, queries, form, work, call, exact)


def table(lines: Sequence[Line], bandwidth: float) -> str:
    """Markdown: fused kernels beside their plain forms, then products and attention."""
    rows = [
        f"Copy: {per_second('B', bandwidth)} read and written.",
        "",
        "| kernel | tokens | fused µs | rate | of copy | plain µs | error |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = {(o.what, o.tokens): o.microseconds for o in lines if o.form == "plain"}
    for o in lines:
        if o.group == "elementwise" and o.form == "fused":
            share = 100 * o.floor / o.microseconds
            other = plain[o.what, o.tokens]
            rows.append(
                f"| {o.what} | {o.tokens} | {o.microseconds:.1f} | {per_second('B', 1e9 * o.rate)} "
                f"| {share:.0f} % | {other:.0f} | {o.error or 0:.0e} |"
            )
    rows += ["", "| product or attention | tokens | form | µs | rate | error |"]
    rows += ["|---|---|---|---|---|---|"]
    for o in lines:
        if o.group != "elementwise":
            rows.append(
                f"| {o.what} | {o.tokens} | {o.form} | {o.microseconds:.0f} "
                f"| {per_second('FLOP', 1e12 * o.rate)} | {o.error or 0:.1e} |"
            )
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
    bench = Kernels(SMALL if options.small else FULL, device)
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
