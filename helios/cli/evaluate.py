"""``helios evaluate``: judge a model on held-out captions and on continuations of true clips."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]

SUITES = ("quick",)


def evaluate(
    model: Annotated[str, typer.Argument(help="tiny, or a model folder.")] = "tiny",
    suite: Annotated[str, typer.Option(help="What is measured: quick.")] = "quick",
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.json and report.md.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of another judge than the bundled one.")
    ] = None,
    captions: Annotated[int, typer.Option(min=1, help="Held-out captions to judge.")] = 16,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of 33 frames per video.")] = 1,
    clips: Annotated[int, typer.Option(min=1, help="True clips to continue.")] = 8,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of the prompt.")] = None,
    seed: Annotated[int, typer.Option(help="Of captions, scenes and noise.")] = 20_000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Measure how well MODEL does what captions say.

    Captions are of attribute combinations that training never saw; a small network reads colours,
    shapes, motion and setting off the frames. True clips are started from their first frame and
    continued, and compared with what truly follows. The defaults take minutes on two CPU cores.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    from helios import __version__
    from helios.evaluation import JUDGE_FOLDER, AccuracyConfig, load_judge, measure
    from helios.pipeline import load
    from helios.storage import write_json

    if report is not None:
        # Before the minutes of work, not after them.
        report.mkdir(parents=True, exist_ok=True)
    pipe = load(model, device=device, dtype=dtype)
    network = load_judge(judge or JUDGE_FOLDER, pipe.device)
    config = AccuracyConfig(
        captions=captions,
        chunks=chunks,
        clips=min(clips, captions),
        steps=steps,
        guidance=guidance_scale,
        batch_size=128 if pipe.device.type == "cuda" else 4,
        parts=("truth", "model", "image", "video"),
        seed=seed,
        height=pipe.defaults.height,
        width=pipe.defaults.width,
    )
    result = measure(config, network.read, pipe, pipe.device)
    text = f"# {pipe.name}: captions and continuations\n\n{result.to_markdown()}"
    typer.echo(text)
    if report is None:
        return
    values = {
        "helios": __version__,
        "model": pipe.name,
        "suite": suite,
        "settings": asdict(config) | {"parts": list(config.parts)},
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
    write_json(report / "report.json", values | result.to_json())
    (report / "report.md").write_text(text, "utf-8")
