"""Stream many chunks and watch memory and time per chunk: neither may grow.

    python benchmarks/bench_stream.py [--model tiny] [--chunks 300] [--device cpu] [--out FILE]

Prints one line, writes all figures as JSON, and exits 1 if a limit is passed: resident memory
after chunk 20 may grow by 16 MiB, and the last 50 chunks may take 1.1 times as long as chunks
20 to 69. Frames are made and dropped; nothing is written to a video.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import helios
from helios.pipeline import resident_memory

MEMORY_LIMIT = 16 * 2**20
TIME_LIMIT = 1.1
WARM = 20
SPAN = 50


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--steps", default=None, help="25, or 2,2,2; the model's own if left out")
    parser.add_argument("--guidance-scale", type=float, default=None)
    parser.add_argument("--prompt", default="a large red ball bounces on green grass")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for all figures")
    return parser.parse_args()


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and resident bytes after each chunk."""
    pipe = helios.load(options.model, device=options.device, dtype=options.dtype)
    steps = options.steps and tuple(int(part) for part in options.steps.split(","))
    request = helios.Request(
        prompt=options.prompt,
        seed=options.seed,
        steps=steps[0] if steps and len(steps) == 1 else steps,
        guidance_scale=options.guidance_scale,
    )
    seconds, memory = [], []
    began = time.perf_counter()
    for chunk in pipe.stream(request):
        gc.collect()
        memory.append(resident_memory(pipe.device) or 0)
        seconds.append(time.perf_counter() - began)
        frames = len(chunk.frames)
        last = chunk.index == options.chunks - 1
        # The loop must not be what keeps the last chunk alive.
        del chunk
        if last:
            break
        if len(seconds) % 25 == 0:
            print(f"{len(seconds)}/{options.chunks} chunks", file=sys.stderr, flush=True)
        began = time.perf_counter()
    return {
        "settings": pipe.settings(request),
        "frames_per_chunk": frames,
        "seconds": [round(value, 4) for value in seconds],
        "memory": memory,
    }


def judge(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with what they mean."""
    seconds, memory = figures["seconds"], figures["memory"]
    warm = min(WARM, len(seconds) - 1)
    early = statistics.mean(seconds[warm : warm + SPAN])
    late = statistics.mean(seconds[-SPAN:])
    growth = memory[-1] - memory[warm]
    return figures | {
        "chunks": len(seconds),
        "growth_mib": round(growth / 2**20, 2),
        "peak_growth_mib": round((max(memory[warm:]) - memory[warm]) / 2**20, 2),
        "early_seconds": round(early, 4),
        "late_seconds": round(late, 4),
        "time_ratio": round(late / early, 4),
        "frames_per_second": round(figures["frames_per_chunk"] / statistics.median(seconds), 2),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "passed": growth < MEMORY_LIMIT and late / early <= TIME_LIMIT,
    }


def main() -> int:
    options = parse()
    if options.chunks < 2:
        print("error: 2: --chunks must be at least 2", file=sys.stderr)
        return 2
    result = judge(stream(options))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(
        f"{result['chunks']} chunks: memory after chunk {WARM} {result['growth_mib']:+.1f} MiB, "
        f"time per chunk {result['early_seconds']:.3f} s to {result['late_seconds']:.3f} s "
        f"(x{result['time_ratio']:.3f}), {result['frames_per_second']:.1f} frames/s: "
        + ("passed" if result["passed"] else "FAILED")
    )
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
