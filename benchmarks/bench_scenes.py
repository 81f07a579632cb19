"""Frames per second of the scene renderer on the present device.

    python benchmarks/bench_scenes.py                    # a GPU if there is one
    python benchmarks/bench_scenes.py --device cpu --clips 4

Prints one line a configuration and writes everything as JSON with ``--json``.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from helios.data.scenes import render, sample_scenes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, help="clips a pass (default: 256 on a GPU, 4 else)")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--supersampling", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    device: torch.device, clips: int, passes: int, supersampling: int, compiled: bool
) -> dict[str, float | int | bool]:
    """Seconds of the first pass (compilation included) and frames per second of the others."""

    def once(number: int) -> float:
        scenes = sample_scenes(clips, seed=7, start=number * clips)
        wait(device)
        begin = time.perf_counter()
        frames = render(
            scenes, frames=33, device=device, supersampling=supersampling, compile=compiled
        )
        wait(device)
        assert frames.shape == (clips, 33, 128, 192, 3)
        return time.perf_counter() - begin

    first = once(0)
    seconds = [once(number + 1) for number in range(passes)]
    rates = [clips * 33 / second for second in seconds]
    return {
        "compiled": compiled,
        "supersampling": supersampling,
        "clips": clips,
        "first_pass_seconds": first,
        "frames_per_second_best": max(rates),
        "frames_per_second_mean": clips * 33 * passes / sum(seconds),
    }


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    clips = options.clips or (256 if cuda else 4)
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU"
    rows = []
    for compiled in (False,) if options.eager_only or not cuda else (False, True):
        for supersampling in options.supersampling:
            row = measure(device, clips, options.passes, supersampling, compiled)
            if cuda:
                row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            rows.append(row)
            print(
                f"{name}, {'compiled' if compiled else 'eager'}, {supersampling}x{supersampling}: "
                f"{row['frames_per_second_mean']:,.0f} frames/s at 128x192 "
                f"(best {row['frames_per_second_best']:,.0f}, "
                f"first pass {row['first_pass_seconds']:.1f} s)",
                flush=True,
            )
    if options.json:
        report = {
            "device": name,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
