"""Launch parameters of the row kernels, tried one by one: `bench_kernels.py --tune`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from kernel_bench import EPS, Bench
from torch import Tensor

from helios import kernels
from helios.kernels import Stream

__all__ = ["tune"]


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
        modules = (norm_triton, rope_triton, stream_triton)
        before = [(module.tokens_for, module.warps_for) for module in modules]
        for name, calls in cases.items():
            cells = []
            for tokens in (1, 2, 4, 8):
                for warps in (4, 8, 16):
                    for module in modules:
                        module.tokens_for = lambda _, n=tokens: n
                        module.warps_for = lambda _, n=warps, **__: n
                    cells.append(f"{tokens},{warps}: {bench.clock(calls):.1f}")
            rows.append(f"| {name} | {length} | {'; '.join(cells)} |")
        for module, (tokens_for, warps_for) in zip(modules, before):
            module.tokens_for, module.warps_for = tokens_for, warps_for
    return "\n".join(rows)
