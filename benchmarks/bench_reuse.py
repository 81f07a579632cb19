"""How far chunks made with reused history are from exact ones, on a trained model.

    python benchmarks/bench_reuse.py [--model tiny] [--steps 12] [--reuse scale] [--out FILE]

For each prompt a stream is made up to its second chunk, which is then made three times from the
same state: exactly, with ``reuse_history``, and exactly with other noise. The last tells what a
difference of this size means. Prints the relative L2 distance of latents and the PSNR of frames.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

import helios
from helios.evaluation import hardware
from helios.pipeline import Chunk, EngineConfig, Pipeline, Request

PROMPTS = (
    "a large red ball bounces on green grass",
    "a small blue cube slides on sand",
    "a yellow cone spins on snow",
    "a green ball rolls on grass",
)
SEED = 10
OTHER_SEED = 999


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", default="12", help="12, or 2,2,2 for a model with three scales")
    parser.add_argument("--reuse", choices=("scale", "chunk"), default="scale")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--out", type=Path, default=None, help="JSON file for all figures")
    return parser.parse_args()


def apart(one: Chunk, other: Chunk) -> dict[str, float]:
    """Relative L2 distance of latents, PSNR of frames."""
    relative = (one.latents - other.latents).norm() / other.latents.norm()
    square = np.square(one.frames.astype(float) - other.frames.astype(float)).mean()
    return {"latents": float(relative), "psnr_db": 10 * math.log10(255**2 / max(square, 1e-9))}


def compare(
    pipe: Pipeline, prompt: str, number: int, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """The second chunk of one prompt, made three times."""
    steps = tuple(int(part) for part in options.steps.split(","))
    request = Request(
        prompt=prompt,
        seed=SEED + number,
        steps=steps[0] if len(steps) == 1 else steps,
        num_frames=None,
    )
    pipe.accelerate(EngineConfig())
    session = pipe.session(request)
    next(session)
    approximated, redrawn = session.branch(1), session.branch(1)
    exact = next(session)
    redrawn._generator.manual_seed(OTHER_SEED + number)
    other = next(redrawn)
    pipe.accelerate(EngineConfig(reuse_history=options.reuse))
    return {"reused": apart(next(approximated), exact), "other_noise": apart(other, exact)}


def main() -> int:
    options = parse()
    pipe = helios.load(options.model, device=options.device, dtype=options.dtype)
    rows = {}
    for number, prompt in enumerate(PROMPTS[: options.prompts]):
        rows[prompt] = compare(pipe, prompt, number, options)
        print(prompt, rows[prompt], flush=True)
    means = {
        kind: {
            name: statistics.mean(row[kind][name] for row in rows.values())
            for name in ("latents", "psnr_db")
        }
        for kind in ("reused", "other_noise")
    }
    print("mean", means)
    if options.out is not None:
        result = {"hardware": hardware(pipe.device), "prompts": rows, "mean": means}
        settings = {"model": pipe.name, "steps": options.steps, "reuse": options.reuse}
        dtype = str(pipe.dtype).removeprefix("torch.")
        options.out.write_text(
            json.dumps({**settings, "dtype": dtype, **result}, indent=2) + "\n", "utf-8"
        )
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
