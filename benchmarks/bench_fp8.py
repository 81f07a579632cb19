"""What e4m3 products cost a trained model: caption accuracy and feature distance, video by video.

    python benchmarks/bench_fp8.py [--model tiny] [--captions 2048] [--steps 25] [--out FILE]

The same captions with the same seeds are made in bfloat16, with products in e4m3, and with
attention in e4m3 as well; the judge reads all of them. Differences are paired, with 95 % intervals.
The feature distance is the Fréchet distance of the judge's features to renders of the same scenes.

Where the device has no e4m3 products, or the model's widths do not fit them, the same rounding of
weights and activations is done and the rounded numbers are multiplied in a wider type. That is slow
and as accurate; the report says which it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import helios
from helios.evaluation import hardware
from helios.evaluation.accuracy import ATTRIBUTES
from helios.evaluation.caption_suite import Captions
from helios.evaluation.clips import RENDER_BATCH, decode, film
from helios.evaluation.generation import generate_batch
from helios.evaluation.intervals import Estimate, paired_estimate
from helios.evaluation.metrics.features import Moments, frechet_distance
from helios.evaluation.metrics.judge_file import load_judge
from helios.evaluation.metrics.scene_judge import SceneJudge
from helios.evaluation.reading import stated_verdicts
from helios.evaluation.suites import parse_steps
from helios.kernels import machine_of
from helios.model import Fp8Config, quantised
from helios.pipeline import Pipeline
from helios.storage import write_json

EXACT = "bfloat16"
ARMS = {
    EXACT: None,
    "products": Fp8Config(attention_from=None),
    "products and attention": Fp8Config(attention_from=1),
}
"""What is in e4m3."""
LOSS = 0.01
"""Share of right answers that may be lost."""
DISTANCE = 0.05
"""How much farther from the renders the features may be."""


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Which videos every arm makes: one chunk of each caption.

    Attributes:
        captions: with the scenes they tell of.
        seed: of the first video.
        size: how many at a time.
        steps: none: the model's own.
    """

    captions: Captions
    seed: int
    size: int
    steps: int | tuple[int, ...] | None = None


@dataclass
class Judged:
    """What the judge made of one video per caption.

    Attributes:
        verdicts: per video, right or wrong of every attribute that its caption lets one ask.
        features: ``[N, F]``.
        seconds: of generating.
    """

    verdicts: list[dict[str, bool]]
    features: NDArray[np.float64]
    seconds: float


@contextmanager
def arm(pipe: Pipeline, config: Fp8Config | None) -> Iterator[None]:
    """Inside, ``pipe`` multiplies what ``config`` says in e4m3."""
    if config is None:
        yield
        return
    with quantised(pipe.transformer, config):
        yield


def judged(pipe: Pipeline, judge: SceneJudge, videos: Videos) -> Judged:
    """``videos`` made by ``pipe`` as it is, and read by the judge."""
    captions, size = videos.captions, videos.size
    verdicts: list[dict[str, bool]] = []
    features, seconds = [], 0.0
    for first in range(0, len(captions.texts), size):
        chosen = slice(first, first + size)
        began = time.perf_counter()
        latents = generate_batch(
            pipe,
            captions.texts[chosen],
            num_chunks=1,
            seed=videos.seed + first,
            batch_size=size,
            steps=videos.steps,
        )
        frames = decode(pipe.codec, latents)
        features.append(judge.features(frames).cpu())
        seconds += time.perf_counter() - began
        given = zip(captions.scenes[chosen], judge.read(frames), captions.stated[chosen])
        verdicts += [dict(stated_verdicts(*one)) for one in given]
    return Judged(verdicts, torch.cat(features).double().numpy(), seconds)


def rendered(pipe: Pipeline, judge: SceneJudge, captions: Captions) -> NDArray[np.float64]:
    """Features ``[N, F]`` of the scenes themselves."""
    height, width, parts = pipe.defaults.height, pipe.defaults.width, []
    for first in range(0, len(captions.scenes), RENDER_BATCH):
        scenes = captions.scenes[first : first + RENDER_BATCH]
        frames = film(scenes, height=height, width=width, device=pipe.device)
        parts.append(judge.features(frames).cpu())
    return torch.cat(parts).double().numpy()


def difference(ours: Judged, exact: Judged, attribute: str) -> Estimate:
    """Mean of right answers, ours minus exact, over the videos that can be asked."""

    def column(one: Judged) -> list[list[float]]:
        return [[float(v[attribute])] for v in one.verdicts if attribute in v]

    return paired_estimate(column(ours), column(exact))


def share(one: Judged, attribute: str) -> float:
    """How many of the videos that can be asked are right."""
    return float(np.mean([v[attribute] for v in one.verdicts if attribute in v]))


def relative(features: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    """How far features are from those of the same video in bfloat16, relative to their size."""
    return float(np.linalg.norm(features - exact) / np.linalg.norm(exact))


def in_hardware(pipe: Pipeline) -> bool:
    """Whether the device multiplies e4m3 numbers of this model's widths itself."""
    widths = (pipe.transformer.config.width, pipe.transformer.config.ffn_dim)
    fits = all(width % 16 == 0 for width in widths) and pipe.dtype == torch.bfloat16
    return fits and machine_of(pipe.device).runs_fp8


def compare(pipe: Pipeline, judge: SceneJudge, videos: Videos) -> dict[str, Any]:
    """All figures, ready for JSON."""
    captions = videos.captions
    found: dict[str, Judged] = {}
    for name, config in ARMS.items():
        with arm(pipe, config):
            found[name] = judged(pipe, judge, videos)
        line = f"{name}: {len(captions.texts)} videos, {found[name].seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)
    truth = Moments.of(rendered(pipe, judge, captions))
    apart = {n: frechet_distance(Moments.of(one.features), truth) for n, one in found.items()}
    exact = found[EXACT]
    asked = [a for a in ATTRIBUTES if any(a in v for v in exact.verdicts)]
    return {
        "videos": len(captions.texts),
        "e4m3": "in hardware" if in_hardware(pipe) else "rounded, multiplied in a wider type",
        "arms": {
            name: {
                "right": {a: round(share(one, a), 5) for a in asked},
                "difference": {a: difference(one, exact, a).to_json() for a in asked},
                "distance": apart[name],
                "distance_ratio": apart[name] / apart[EXACT],
                "features_apart": relative(one.features, exact.features),
                "seconds": round(one.seconds, 1),
            }
            for name, one in found.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown: per cent right, and points of difference with their interval."""
    exact, *others = result["arms"].items()
    head = ["", exact[0], *(f"e4m3 {name} (difference)" for name, _ in others)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for attribute, right in exact[1]["right"].items():
        cells = [f"{100 * right:.2f}"]
        for _, other in others:
            d = other["difference"][attribute]
            low, high = (100 * (d[k] or 0.0) for k in ("low", "high"))
            cells.append(f"{100 * d['value']:+.2f} ({low:+.2f} to {high:+.2f})")
        lines.append(f"| {attribute} | " + " | ".join(cells) + " |")
    cells = [f"{exact[1]['distance']:.4g}"]
    cells += [f"{o['distance']:.4g} (× {o['distance_ratio']:.4f})" for _, o in others]
    lines.append("| feature distance to renders | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(result: dict[str, Any]) -> list[str]:
    """A line per arm: whether it keeps the limits."""
    lines = []
    for name, one in list(result["arms"].items())[1:]:
        worst = min(one["difference"], key=lambda a: one["difference"][a]["value"])
        lost = 0.0 - one["difference"][worst]["value"]
        kept = lost <= LOSS and one["distance_ratio"] <= 1 + DISTANCE
        lines.append(
            f"e4m3 {name}: {'within' if kept else 'BEYOND'} the limits: loses {100 * lost:.2f} "
            f"points at most ({worst}; limit {100 * LOSS:.0f}), "
            f"distance × {one['distance_ratio']:.4f} (limit {1 + DISTANCE:.2f})"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="name or folder")
    parser.add_argument("--captions", type=int, default=2048)
    parser.add_argument("--steps", type=parse_steps, help="25, or 2,2,2; else the model's own")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for all figures")
    options = parser.parse_args(arguments)
    if options.captions < 2:
        print("error: 2: --captions must be at least 2", file=sys.stderr)
        return 2
    pipe = helios.load(options.model, device=options.device, dtype="bfloat16")
    captions = Captions.draw(options.captions, options.seed)
    judge = load_judge(device=pipe.device)
    videos = Videos(
        captions=captions, seed=options.seed, size=options.batch_size, steps=options.steps
    )
    result = compare(pipe, judge, videos)
    print(f"{pipe.name}, {result['videos']} videos; e4m3 {result['e4m3']}\n")
    print(table(result), "", *verdict(result), sep="\n")
    if options.out is not None:
        settings = {"model": pipe.name, "captions": options.captions, "seed": options.seed}
        settings["steps"] = options.steps
        write_json(options.out, {**settings, "hardware": hardware(pipe.device), **result})
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
