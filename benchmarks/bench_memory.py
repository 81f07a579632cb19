"""Memory and time per chunk over a long video: ours and diffusers' pipeline, side by side.

    python benchmarks/bench_memory.py [--chunks 500] [--size 128x96] [--report FILE] [--plot FILE]

One small random checkpoint is written; two fresh processes load it and make the same video, two
flat steps a chunk, in float32 on one CPU thread. They take turns chunk by chunk, so that whatever
else the machine does hits both. After every chunk each tells its resident memory and the seconds
that the chunk took. Exits 1 if ours grows by 16 MiB or more after chunk 20, or if the two did not
make the same first chunk.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from bench_stream import MEMORY_LIMIT, SPAN, WARM, judge
from torch import Tensor

import helios
from helios.cli.generate import parse_size
from helios.codec import AutoencoderConfig, Codec, WanAutoencoder
from helios.diffusion import CFG, Flat, ScheduleConfig, ShiftLaw
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS
from helios.model import HeliosTransformer, TransformerConfig
from helios.pipeline import GenerationConfig, Pipeline, resident_memory, save

SIDES = ("ours", "diffusers")
SEED = 7
STEPS = 2
SAME = 1e-4
TEXT = (16, 24)
"""Rows and columns of the encoded prompt."""


def write_checkpoint(folder: Path) -> Path:
    """A small random model with one scale, without a text encoder."""
    torch.manual_seed(SEED)
    transformer = HeliosTransformer(
        TransformerConfig(
            num_attention_heads=4,
            attention_head_dim=16,
            rope_dim=(4, 6, 6),
            text_dim=TEXT[1],
            freq_dim=32,
            ffn_dim=128,
            num_layers=2,
        )
    )
    # Folding pixels instead of halving a third time makes the longest part much quicker.
    codec = WanAutoencoder(
        AutoencoderConfig(
            base_dim=16,
            dim_mult=(1, 1, 1),
            temperal_downsample=(True, True),
            num_res_blocks=1,
            patch_size=2,
            in_channels=12,
            out_channels=12,
        )
    )
    pipe = Pipeline(
        transformer.eval(),
        Codec(codec),
        None,
        GenerationConfig(plan=Flat(steps=STEPS), guidance=CFG(5.0)),
        ScheduleConfig(dynamic=ShiftLaw(kind="exponential"), stages=1, lag=True),
    )
    return save(pipe, folder)


def prompt_embeds() -> Tensor:
    return torch.randn(TEXT, generator=torch.Generator().manual_seed(SEED))


class Turns:
    """A child's side of the taking of turns: waits to be told, works, tells."""

    def __init__(self, told: TextIO, answer: TextIO) -> None:
        self.told, self.answer = told, answer
        self.began = 0.0

    def wait(self) -> None:
        self.told.readline()
        self.began = time.perf_counter()

    def done(self, latents: float) -> None:
        """Report the chunk whose latents have this root mean square; wait for the next turn."""
        seconds = time.perf_counter() - self.began
        gc.collect()
        line = {"seconds": seconds, "memory": resident_memory(), "latents": latents}
        print(json.dumps(line), file=self.answer, flush=True)
        self.wait()


def strength(latents: Tensor) -> float:
    return latents.double().square().mean().sqrt().item()


def make_ours(folder: Path, chunks: int, size: tuple[int, int], turns: Turns) -> None:
    pipe = helios.load(folder, "cpu", "float32")
    request = helios.Request(
        prompt_embeds=prompt_embeds(),
        guidance_scale=1.0,
        width=size[0],
        height=size[1],
        num_frames=chunks * CHUNK_FRAMES,
        seed=SEED,
    )
    turns.wait()
    for chunk in pipe.stream(request):
        measured = strength(chunk.latents)
        # The loop must not be what keeps the last chunk alive.
        del chunk
        turns.done(measured)


def make_theirs(folder: Path, chunks: int, size: tuple[int, int], turns: Turns) -> None:
    """Their pipeline makes a whole video in one call; it is held up after every decoded chunk."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    pipe = diffusers.HeliosPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderKLWan.from_pretrained(folder / "vae"),
        scheduler=diffusers.HeliosScheduler.from_pretrained(folder / "scheduler"),
        transformer=diffusers.HeliosTransformer3DModel.from_pretrained(folder / "transformer"),
    )
    pipe.set_progress_bar_config(disable=True)
    decode, config = pipe.vae.decode, pipe.vae.config
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(config.latents_mean).view(shape)
    std = torch.tensor(config.latents_std).view(shape)

    def held_up(latents: Tensor, *arguments: Any, **options: Any) -> Any:
        frames = decode(latents, *arguments, **options)
        turns.done(strength((latents - mean) / std))
        return frames

    pipe.vae.decode = held_up
    turns.wait()
    with torch.no_grad():
        pipe(
            prompt_embeds=prompt_embeds()[None],
            guidance_scale=1.0,
            width=size[0],
            height=size[1],
            num_frames=chunks * CHUNK_FRAMES,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        )


def take_turns(folder: Path, chunks: int, size: str) -> Iterator[dict[str, dict[str, float]]]:
    """One chunk of each side at a time, with what they told."""
    own = [sys.executable, __file__, "--folder", str(folder), "--chunks", str(chunks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    children = {
        side: subprocess.Popen(
            [*own, "--size", size, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for side in SIDES
    }
    try:
        for _ in range(chunks):
            yield {side: _turn(child, side) for side, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.communicate()


def _turn(child: subprocess.Popen[str], side: str) -> dict[str, float]:
    if child.stdin is None or child.stdout is None:
        raise ValueError("children talk through pipes")
    child.stdin.write("go\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{side} stopped; its error is above")
    told: dict[str, float] = json.loads(line)
    return told


def measure(chunks: int, size: str) -> dict[str, Any]:
    figures: dict[str, dict[str, list[float]]] = {
        side: {"seconds": [], "memory": [], "latents": []} for side in SIDES
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Path(scratch) / "model")
        for number, told in enumerate(take_turns(folder, chunks, size), start=1):
            for side, values in told.items():
                for name, value in values.items():
                    figures[side][name].append(round(value, 5))
            if number % 50 == 0:
                print(f"{number}/{chunks} chunks", file=sys.stderr, flush=True)
    report: dict[str, Any] = {"size": size, "steps": STEPS, "latents_per_chunk": CHUNK_LATENTS}
    for side in SIDES:
        report[side] = judge({"frames_per_chunk": CHUNK_FRAMES, **figures[side]})
        report[side].pop("passed")
    first, other = (figures[side]["latents"][0] for side in SIDES)
    slower = quotients(report)
    report["times_ours"] = {
        "early": round(statistics.median(slower[WARM : WARM + SPAN] or slower), 2),
        "late": round(statistics.median(slower[-SPAN:]), 2),
    }
    report["same_first_chunk"] = math.isclose(first, other, rel_tol=SAME)
    grown = report["ours"]["growth_mib"]
    report["passed"] = report["same_first_chunk"] and grown < MEMORY_LIMIT / 2**20
    return report


WIDTH, HEIGHT, MARGIN = 320, 220, 48
COLOURS = {"ours": "#1f6f4a", "diffusers": "#b3541e"}


def plot(report: dict[str, Any]) -> str:
    """Panels as SVG over chunks: memory since chunk 20, seconds a chunk, and their quotient."""
    panels = [
        (
            "Resident memory",
            "MiB since chunk 20",
            {side: _line(report[side]["memory"], "memory") for side in SIDES},
        ),
        (
            "Time per chunk",
            "s, on a shared machine",
            {side: _line(report[side]["seconds"], "seconds") for side in SIDES},
        ),
        (
            "Time per chunk, relative",
            "diffusers / ours",
            {"diffusers": _line(quotients(report), "quotient")},
        ),
    ]
    whole = len(panels) * (WIDTH + MARGIN) - MARGIN
    drawn = "".join(
        _panel(lines, title, unit, index * (WIDTH + MARGIN))
        for index, (title, unit, lines) in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="#333">\n'
        f'<rect width="{whole}" height="{HEIGHT}" fill="white"/>\n{drawn}</svg>\n'
    )


def quotients(report: dict[str, Any]) -> list[float]:
    """Their time over ours, chunk by chunk: both ran one after the other on the same machine."""
    times = zip(report["diffusers"]["seconds"], report["ours"]["seconds"], strict=True)
    return [theirs / own for theirs, own in times]


def _line(values: Sequence[float], name: str) -> list[tuple[int, float]]:
    """Points to draw: medians of neighbours, for a shared machine is never quiet."""
    span = max(1, len(values) // 100)
    points = []
    for start in range(0, len(values) - span + 1, span):
        value = statistics.median(values[start : start + span])
        if name == "memory":
            value = (value - values[min(WARM, len(values) - 1)]) / 2**20
        points.append((start + span // 2, value))
    return points


def _above(value: float) -> float:
    """The next round number, for the end of an axis."""
    unit = 10 ** math.floor(math.log10(value)) if value > 0 else 1
    steps = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(float(f"{step * unit:g}") for step in steps if step * unit >= value * 0.9999)


def _panel(lines: dict[str, list[tuple[int, float]]], title: str, unit: str, left: int) -> str:
    last = _above(max(x for points in lines.values() for x, _ in points))
    top = _above(max(y for points in lines.values() for _, y in points))
    x0, y0, x1, y1 = left + MARGIN, HEIGHT - 34, left + WIDTH, 30

    def place(x: float, y: float) -> tuple[float, float]:
        return x0 + x / last * (x1 - x0), y0 - max(y, 0) / top * (y0 - y1)

    parts = [
        f'<text x="{x0}" y="16" font-size="13" font-weight="bold">{title}</text>',
        f'<text x="{x1}" y="16" text-anchor="end">{unit}</text>',
        f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="#999"/>',
        f'<text x="{(x0 + x1) / 2}" y="{HEIGHT - 4}" text-anchor="middle">chunk</text>',
    ]
    for share in (0, 0.5, 1):
        _, y = place(0, top * share)
        x, _ = place(last * share, 0)
        parts.append(f'<text x="{x0 - 5}" y="{y + 4:.0f}" text-anchor="end">{top * share:g}</text>')
        parts.append(
            f'<text x="{x:.0f}" y="{y0 + 14}" text-anchor="middle">{last * share:g}</text>'
        )
    for row, (side, points) in enumerate(lines.items()):
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        colour = COLOURS[side]
        parts.append(
            f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{x0 + 8}" y="{y1 + 12 + 14 * row}" fill="{colour}">{side}</text>'
        )
    return "\n".join(parts) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=500)
    parser.add_argument("--size", default="128x96", help="width x height")
    parser.add_argument("--report", type=Path, default=None, help="JSON file for all figures")
    parser.add_argument("--plot", type=Path, default=None, help="SVG file")
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    size = parse_size(options.size)
    if options.side is not None:
        torch.set_num_threads(1)
        # What the libraries print must not get between the answers.
        turns = Turns(sys.stdin, os.fdopen(os.dup(1), "w"))
        os.dup2(2, 1)
        make = make_ours if options.side == "ours" else make_theirs
        make(options.folder, options.chunks, size, turns)
        return 0
    if options.chunks < 2:
        print("error: 2: --chunks must be at least 2", file=sys.stderr)
        return 2
    report = measure(options.chunks, options.size)
    if options.report is not None:
        options.report.write_text(json.dumps(report) + "\n", "utf-8")
    if options.plot is not None:
        options.plot.write_text(plot(report), "utf-8")
    for side in SIDES:
        part = report[side]
        print(
            f"{side:<9} {part['growth_mib']:+9.1f} MiB after chunk {WARM}, "
            f"{part['early_seconds']:.3f} s to {part['late_seconds']:.3f} s a chunk "
            f"(x{part['time_ratio']:.2f})"
        )
    slower = report["times_ours"]
    print(f"diffusers takes {slower['early']} times as long at first, {slower['late']} at the end")
    print("passed" if report["passed"] else "FAILED")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
