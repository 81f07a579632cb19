"""Does a distilled model keep up with the clock on a CPU, the finished mp4 included?

    python benchmarks/bench_realtime.py --model DIR [--steps 1,1,1] [--threads 2] [--chunks 40]
                                        [--dtype bfloat16 --dtype float32] [--out FILE.json]
                                        [--plot FILE.svg]

For each dtype one stream is written to an mp4. The clock runs from the request to the complete
file: text, sampling, decoding and encoding. Then the encoder is timed alone, and the operators of
sampling and of decoding are counted by PyTorch's profiler. Prints a report in Markdown, which is
also written beside ``--out``. Exits 1 below 24 frames a second in bfloat16 where the CPU has matrix
extensions (AMX), or below 12 in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import helios
from helios.evaluation import hardware
from helios.evaluation.pages.charts import bar_chart
from helios.geometry import CHUNK_FRAMES
from helios.media import VideoWriter
from helios.pipeline import Chunk, Pipeline, Request

WANTED = {"bfloat16": 24.0, "float32": 12.0}
"""Frames a second; that of bfloat16 is for CPUs with matrix extensions."""
FPS = 24
WARM_CHUNKS = 2
PROFILED_CHUNKS = 3
SHOWN = 12
"""Operators in a table."""
KINDS = {
    "attention": ("scaled_dot_product",),
    "products": ("addmm", "aten::mm", "linear"),
    "convolutions": ("conv",),
    "norms, activations": ("NormSiLU", "norm", "silu", "gelu", "reciprocal", "clamp_min", "pow"),
    "copies, conversions": ("copy", "cat", "empty"),
    "all else": ("",),
}
"""What an operator belongs to: the first kind of which its name holds a word."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a distilled model")
    parser.add_argument("--steps", default="1,1,1", help="per scale, or one number if it is flat")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--dtype", action="append", choices=list(WANTED), help="may be repeated")
    parser.add_argument("--prompt", default="a large red ball bounces on green grass")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file; the report comes beside it")
    parser.add_argument("--plot", type=Path, help="SVG file: where the time goes")
    options = parser.parse_args(arguments)
    if options.chunks < 2 or options.threads < 1:
        parser.error("--chunks must be at least 2 and --threads at least 1")
    return options


def request_of(options: argparse.Namespace, chunks: int) -> Request:
    steps = tuple(int(part) for part in options.steps.split(","))
    return Request(
        prompt=options.prompt,
        num_frames=chunks * CHUNK_FRAMES,
        steps=steps[0] if len(steps) == 1 else steps,
        seed=options.seed,
    )


def end_to_end(pipe: Pipeline, request: Request) -> dict[str, Any]:
    """One stream to a complete mp4."""
    chunks: list[Chunk] = []
    gaps = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        began = last = time.perf_counter()
        worked = time.process_time()
        with VideoWriter(path, pipe.defaults.width, pipe.defaults.height, FPS, {}) as writer:
            for chunk in pipe.stream(request):
                writer.write(chunk.frames)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
                chunks.append(chunk)
        seconds = time.perf_counter() - began
        size = path.stat().st_size
    timings = {
        part: 1e3 * statistics.median(chunk.timings[part] for chunk in chunks[1:])
        for part in ("sample", "decode")
    }
    return {
        "frames": len(chunks) * CHUNK_FRAMES,
        "seconds": round(seconds, 3),
        "frames_per_second": round(len(chunks) * CHUNK_FRAMES / seconds, 2),
        "first_chunk_seconds": round(gaps[0], 4),
        "later_chunk_ms": round(1e3 * statistics.median(gaps[1:]), 2),
        "cores_busy": round((time.process_time() - worked) / seconds, 2),
        "bytes": size,
        **{f"{part}_ms": round(value, 2) for part, value in timings.items()},
        "encode_alone_ms": round(encoding(pipe, chunks[: 2 * WARM_CHUNKS]), 2),
    }


def encoding(pipe: Pipeline, chunks: list[Chunk]) -> float:
    """Milliseconds a chunk takes the encoder when nothing else runs."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        size = (pipe.defaults.width, pipe.defaults.height)
        with VideoWriter(Path(folder) / "alone.mp4", *size, FPS, {}) as writer:
            for chunk in chunks:
                writer.write(chunk.frames)
        return 1e3 * (time.perf_counter() - began) / len(chunks)


def operators(run: Callable[[], object], count: int) -> dict[str, dict[str, float]]:
    """Milliseconds of its own and calls, per chunk, of every operator of ``count`` chunks."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return {
        event.key: {
            "ms": event.self_cpu_time_total / 1e3 / count,
            "calls": event.count / count,
        }
        for event in found.key_averages()
        if event.self_cpu_time_total > 0
    }


def profiled(pipe: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    """Operators and kinds, of decoding and of everything else in a chunk but the encoder."""

    def later_chunks() -> Iterator[Chunk]:
        # The first chunk may have more steps and reads the prompt.
        stream = pipe.stream(request_of(options, PROFILED_CHUNKS + 1))
        next(stream)
        return stream

    stream = later_chunks()
    whole = operators(lambda: list(stream), PROFILED_CHUNKS)
    latents = next(later_chunks()).latents[None].to(pipe.device, pipe.codec.dtype)
    repeated = range(PROFILED_CHUNKS)
    with torch.inference_mode():
        pipe.codec.decode_uint8(latents)
        decoding = operators(
            lambda: [pipe.codec.decode_uint8(latents) for _ in repeated], PROFILED_CHUNKS
        )
    sampling = {
        name: {part: max(0.0, row[part] - decoding.get(name, {}).get(part, 0.0)) for part in row}
        for name, row in whole.items()
    }
    parts = {"sampling": sampling, "decoding": decoding}
    return {
        "operators": {part: ordered(rows) for part, rows in parts.items()},
        "kinds": {part: by_kind(rows) for part, rows in parts.items()},
    }


def by_kind(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Milliseconds of operators of the same kind together."""
    sums = dict.fromkeys(KINDS, 0.0)
    for name, row in rows.items():
        sums[next(kind for kind, words in KINDS.items() if any(w in name for w in words))] += row[
            "ms"
        ]
    return {kind: round(value, 1) for kind, value in sums.items()}


def ordered(rows: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """The operators that take most of the time, and the others together."""
    falling = sorted(rows.items(), key=lambda item: -item[1]["ms"])
    shown = [{"operator": name, **row} for name, row in falling[:SHOWN]]
    rest = [row for _, row in falling[SHOWN:]]
    totals = {part: sum(row[part] for row in rest) for part in ("ms", "calls")}
    return [*shown, {"operator": "all others", **totals}]


def measure(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    pipe = helios.load(options.model, device="cpu", dtype=dtype)
    for _ in pipe.stream(request_of(options, WARM_CHUNKS)):
        pass
    figures = end_to_end(pipe, request_of(options, options.chunks))
    wanted = WANTED[dtype] if dtype == "float32" or matrix_extensions() else None
    passed = wanted is None or figures["frames_per_second"] >= wanted
    return figures | {"wanted": wanted, "passed": passed} | profiled(pipe, options)


def matrix_extensions() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 in hardware (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


def report(result: Mapping[str, Any]) -> str:
    """Markdown of all figures."""
    machine = result["machine"]
    lines = [
        "# Real time on a CPU",
        "",
        f"{machine['threads']} threads of a CPU with {machine['cpu']}"
        f"{' and AMX' if machine['amx'] else ', without AMX'}, PyTorch {machine['torch']}; "
        f"`{result['command']}`. From the request to the complete mp4, {result['chunks']} chunks "
        f"of {CHUNK_FRAMES} frames; encoding runs in a thread of its own.",
        "",
        "| | frames/s | wanted | first chunk, s | later chunks, ms | sampling, ms | decoding, ms | "
        "encoding alone, ms | cores busy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dtype, row in result["dtypes"].items():
        wanted = "" if row["wanted"] is None else f"{row['wanted']:.0f}"
        lines.append(
            f"| {dtype} | **{row['frames_per_second']:.1f}** | {wanted} "
            f"| {row['first_chunk_seconds']:.2f} | {row['later_chunk_ms']:.0f} "
            f"| {row['sample_ms']:.0f} | {row['decode_ms']:.0f} | {row['encode_alone_ms']:.0f} "
            f"| {row['cores_busy']:.2f} |"
        )
    for (dtype, row), part in itertools.product(result["dtypes"].items(), ("sampling", "decoding")):
        rows = row["operators"][part]
        total = sum(one["ms"] for one in rows)
        lines += [
            "",
            f"{dtype}, operators of {part} in a later chunk ({total:.0f} ms profiled):",
            "",
        ]
        lines += ["| operator | ms | share | calls |", "|---|---|---|---|"]
        lines += [
            f"| `{one['operator']}` | {one['ms']:.1f} | {one['ms'] / max(total, 1e-9):.0%} "
            f"| {one['calls']:.0f} |"
            for one in rows
        ]
    return "\n".join(lines) + "\n"


def plot(result: Mapping[str, Any]) -> str:
    """Where a later chunk's time goes, one bar per dtype and part, as SVG."""
    rows = [
        (f"{part}, {dtype}", list(row["kinds"][part].values()))
        for dtype, row in result["dtypes"].items()
        for part in row["kinds"]
    ]
    title = f"One chunk of {CHUNK_FRAMES} frames on {result['machine']['threads']} threads"
    return bar_chart(title, rows, list(KINDS), x_label="milliseconds", alone=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    given = sys.argv[1:] if arguments is None else arguments
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/bench_realtime.py", *given]),
        "machine": hardware(torch.device("cpu")) | {"amx": matrix_extensions()},
        "chunks": options.chunks,
        "dtypes": {},
    }
    for dtype in options.dtype or list(WANTED):
        result["dtypes"][dtype] = measure(options, dtype)
        print(f"{dtype}: {result['dtypes'][dtype]['frames_per_second']} frames/s", file=sys.stderr)
    text = report(result)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        options.out.with_suffix(".md").write_text(text, "utf-8")
    if options.plot is not None:
        options.plot.write_text(plot(result), "utf-8")
    return 0 if all(row["passed"] for row in result["dtypes"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
