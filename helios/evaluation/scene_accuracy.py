"""Program: every figure of the caption suite in one run, as JSON with Markdown beside it.

    python -m helios.evaluation.scene_accuracy --model DIR --captions 1000 --chunks 3 --out r.json
    python -m helios.evaluation.scene_accuracy --ground-truth --captions 1000 --out truth.json
    python -m helios.evaluation.scene_accuracy --model DIR --untrained --out untrained.json

With a model and neither switch, one run makes all figures: the tables of the renders, of their
round trip through the codec, of the model and of random weights; image-to-video against the scene
of the image; and the pixels of a continued video against the true continuation.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from helios.evaluation.caption_suite import PARTS, AccuracyConfig, measure
from helios.evaluation.clips import device_name
from helios.evaluation.metrics.judge_file import JUDGE_FOLDER, load_judge
from helios.evaluation.suites import parse_steps
from helios.storage import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the JSON report, with its Markdown beside it."""
    options = _parser().parse_args(arguments)
    parts = PARTS if options.model else ("truth",)
    if options.ground_truth:
        parts = ("truth",)
    elif options.untrained:
        parts = ("untrained",)
    elif options.parts:
        parts = tuple(options.parts.split(","))
    pipe = None
    device = torch.device(options.device)
    if options.model:
        from helios.pipeline import load

        pipe = load(options.model, device=device)
    config = AccuracyConfig(
        captions=options.captions,
        chunks=options.chunks,
        clips=min(options.clips, options.captions),
        steps=options.steps,
        guidance=options.guidance,
        batch_size=options.batch_size,
        parts=parts,
        seed=options.seed,
        height=pipe.defaults.height if pipe else 128,
        width=pipe.defaults.width if pipe else 192,
    )
    judge = load_judge(options.judge, device)
    began = time.monotonic()
    report = measure(config, judge.read, pipe, device)
    text = report.to_markdown()
    print(text)
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    environment = {
        "device": device_name(device),
        "torch": torch.__version__,
        "dtype": str(pipe.dtype).removeprefix("torch.") if pipe else None,
        "seconds": round(time.monotonic() - began, 1),
        "command": " ".join(("python -m helios.evaluation.scene_accuracy", *sys.argv[1:])),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"settings": settings, "environment": environment} | report.to_json())
    options.out.with_suffix(".md").write_text(text, "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Judge a model on held-out captions.")
    parser.add_argument("--model", help="folder or name of a model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ground-truth", action="store_true", help="only the renders")
    which.add_argument("--untrained", action="store_true", help="only random weights")
    which.add_argument("--parts", help=f"comma-separated: {','.join(PARTS)}")
    parser.add_argument("--judge", type=Path, default=JUDGE_FOLDER)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--clips", type=int, default=256, help="for image and video")
    parser.add_argument("--steps", type=parse_steps, help="25, or one per scale: 20,20,20")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
