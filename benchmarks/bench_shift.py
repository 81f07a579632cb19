"""Both time shifts on one model of several scales: the same captions, the same seeds.

    python benchmarks/bench_shift.py --model DIR [--captions 256] [--chunks 2] [--steps 2,2,2]
        [--guidance 1] [--device auto] [--out FILE]

Prints caption accuracy (the judge on held-out captions) of ``shift="published"`` beside that of
``shift="consistent"``, with 95 % intervals, and how far the videos of a seed are apart. Background:
``docs/decisions/0006-shift.md``.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import helios
from helios.cli.generate import parse_steps
from helios.diffusion import Pyramid
from helios.evaluation.accuracy import Table, table_json, tables_markdown
from helios.evaluation.caption_suite import AccuracyConfig, Captions, measure
from helios.evaluation.generation import generate_batch
from helios.evaluation.metrics.judge_file import JUDGE_FOLDER, load_judge
from helios.pipeline import Pipeline
from helios.storage import write_json

SHIFTS = {"published": True, "consistent": False}
"""Names, and whether the shift lags one scale."""
PAIRS = 32
"""Videos whose latents are compared."""


def with_shift(pipe: Pipeline, shift: str, steps: tuple[int, ...] | None = None) -> Pipeline:
    """The same weights under another time shift.

    Raises:
        ValueError: for a model of one scale, which knows no difference.
    """
    plan = pipe.defaults.plan
    if not isinstance(plan, Pyramid):
        raise ValueError(f"{pipe.name} samples one scale, where both shifts are the same")
    other = copy.copy(pipe)
    other.schedule = replace(pipe.schedule, lag=SHIFTS[shift])
    if steps is not None:
        other.defaults = replace(pipe.defaults, plan=replace(plan, steps=steps))
    return other


def compare(
    pipe: Pipeline, config: AccuracyConfig, read: Any, steps: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Accuracy tables of both, and the distance of their latents."""
    tables: dict[str, Table] = {}
    latents = []
    texts = Captions.draw(config.captions, config.seed).first(PAIRS).texts
    for shift in SHIFTS:
        variant = with_shift(pipe, shift, steps)
        report = measure(config, read, variant, pipe.device)
        tables |= {name.replace("model", shift, 1): table for name, table in report.tables.items()}
        latents.append(
            generate_batch(
                variant,
                texts,
                num_chunks=1,
                seed=config.seed,
                batch_size=config.batch_size,
                guidance_scale=config.guidance,
            )
        )
    apart = (latents[0] - latents[1]).square().mean().sqrt() / latents[1].std()
    return {"tables": tables, "distance": apart.item()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name or folder")
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--steps", default=None, help="2,2,2; the model's own if left out")
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for all figures")
    return parser.parse_args()


def main() -> int:
    options = parse()
    pipe = helios.load(options.model, device=options.device)
    parsed = None if options.steps is None else parse_steps(options.steps)
    steps = (parsed,) if isinstance(parsed, int) else parsed
    config = AccuracyConfig(
        captions=options.captions,
        chunks=options.chunks,
        guidance=options.guidance,
        batch_size=options.batch_size,
        parts=("model",),
        seed=options.seed,
        height=pipe.defaults.height,
        width=pipe.defaults.width,
    )
    found = compare(pipe, config, load_judge(JUDGE_FOLDER, pipe.device).read, steps)
    print(tables_markdown(found["tables"]))
    print(f"the same seed under both: {found['distance']:.3f} of the latents' deviation apart")
    if options.out is not None:
        tables = {name: table_json(table) for name, table in found["tables"].items()}
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
        settings |= {"model": pipe.name, "steps": list(steps) if steps else None}
        report = {"settings": settings, "tables": tables, "distance": found["distance"]}
        write_json(options.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
