"""``helios evaluate``: what a model makes of prompts, how it drifts, and against which others."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios.cli.errors import CommandError
from helios.cli.folders import output_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from helios.evaluation import ArmSpec, BenchPrompt, SuiteConfig

__all__ = ["evaluate"]

SUITES = ("quick", "heliosbench", "scenes", "drift", "compare")
VIDEO_SUITES: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "quick": ((66,), 4, 1, 2),
    "heliosbench": ((81, 240, 720, 1440), 240, 1, 6),
    "drift": ((1440,), 64, 1, 0),
    "compare": ((99,), 64, 2, 6),
}
"""Of each suite: lengths, prompts, videos per prompt, chunks against the clock."""


def evaluate(
    model: Annotated[
        str, typer.Argument(help="tiny, a model, or a folder of videos; NAME=MODEL names it.")
    ] = "tiny",
    suite: Annotated[str, typer.Option(help=f"What is measured: {', '.join(SUITES)}.")] = "quick",
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report and, while it grows, its records.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]MODEL[,MODEL...][@steps=2,2,2][@guidance=3][@prompts=16]."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File of prompts (.txt, .json, .jsonl) for real models.")
    ] = None,
    captions: Annotated[
        int | None, typer.Option(min=1, help="How many prompts; held-out scenes without a file.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Frames after which figures are taken, such as 81,1440.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Videos per prompt.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise and scenes.")] = 20_000,
    steps: Annotated[str | None, typer.Option(help="Denoising steps: 25, or 2,2,2.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of the prompt.")] = None,
    networks: Annotated[
        Path | None, typer.Option(help="Folder of scoring networks; see docs/evaluation.md.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of another judge than the bundled one.")
    ] = None,
    renders: Annotated[bool, typer.Option(help="Measure the scenes themselves too.")] = True,
    ceilings: Annotated[
        bool, typer.Option(help="Also what a perfect model would get, and the autoencoder alone.")
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on with the records in the report's folder.")
    ] = True,
    shard: Annotated[
        str | None, typer.Option(help="Only one part of the work, such as 0/4; torchrun sets it.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots as SVG files.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Videos made at once.")] = None,
    speed_chunks: Annotated[
        int | None, typer.Option(min=0, help="Chunks against the clock; 0 for none.")
    ] = None,
    chunks: Annotated[int, typer.Option(min=1, help="Suite scenes: chunks per video.")] = 1,
    clips: Annotated[int, typer.Option(min=1, help="Suite scenes: true clips to continue.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Measure MODEL and write what was found as JSON, Markdown and one HTML page.

    quick: a few short videos, minutes on two CPU cores. heliosbench: the benchmark's lengths and
    ratings. scenes: held-out captions, images and continuations. drift: long videos over time.
    compare: several models on the same prompts and seeds. Whatever was measured before in the
    report's folder is not measured again.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    if suite == "compare" and not against:
        raise ValueError("suite compare needs --against MODEL")
    if suite == "scenes":
        if against or prompts is not None or lengths is not None or plots is not None:
            raise ValueError("suite scenes takes no --against, --prompts, --lengths or --plots")
        with output_folder(report):
            _scenes(
                model, report, judge, captions or 16, chunks, clips, steps, guidance_scale, seed,
                device, dtype,
            )  # fmt: skip
        return
    from helios.distributed import pick_device
    from helios.evaluation import ArmSpec, SuiteConfig, parse_steps, scene_prompts
    from helios.evaluation import read_prompts as read

    usual_lengths, usual_prompts, usual_seeds, usual_speed = VIDEO_SUITES[suite]
    count = captions or usual_prompts
    config = SuiteConfig(
        suite=suite,
        seed=seed,
        repetitions=seeds or usual_seeds,
        renders=renders,
        ceilings=ceilings,
        speed_chunks=usual_speed if speed_chunks is None else speed_chunks,
        shard=_shard(shard),
        device=pick_device(device, int(os.environ.get("LOCAL_RANK", "0"))),
        dtype=dtype,
    )
    first = ArmSpec.parse(model)
    if steps is not None or guidance_scale is not None:
        first = first.with_settings(parse_steps(steps) if steps else None, guidance_scale)
    specs = [first, *(ArmSpec.parse(text) for text in against or ())]
    shown: tuple[BenchPrompt, ...] | None
    if prompts is not None:
        shown = read(prompts, captions)
    else:
        shown = None if first.is_videos else scene_prompts(count, seed)
    _videos(
        config,
        specs,
        shown,
        lengths=_lengths(lengths) or usual_lengths,
        report=report,
        plots=plots,
        judge=judge,
        networks=networks,
        batch_size=batch_size,
        resume=resume,
    )


def _videos(
    config: SuiteConfig,
    specs: list[ArmSpec],
    prompts: tuple[BenchPrompt, ...] | None,
    *,
    lengths: tuple[int, ...],
    report: Path | None,
    plots: Path | None,
    judge: Path | None,
    networks: Path | None,
    batch_size: int | None,
    resume: bool,
) -> None:
    """Every suite that makes videos and files what it sees in them."""
    from helios.evaluation import (
        JUDGE_FOLDER,
        Bench,
        Networks,
        Results,
        evaluate_arms,
        fingerprint,
        load_judge,
        load_networks,
        markdown,
        write_plots,
        write_report,
    )

    judged = prompts is not None and any(prompt.scene is not None for prompt in prompts)
    place = judge or JUDGE_FOLDER
    # Scenes are judged by what they are made of; scoring networks know photographs. The benchmark
    # asks for them all the same, and says what is not there.
    scoring = networks is not None or not judged or config.suite == "heliosbench"
    with _folder(report, config.shard) as folder, output_folder(plots):
        bench = Bench(
            results=Results(folder / "records", reuse=resume),
            lengths=lengths,
            judge=load_judge(place, config.device) if judged else None,
            judge_name=fingerprint(place) if judged else "",
            networks=load_networks(networks, config.device) if scoring else Networks(),
            batch_size=batch_size or _batch_size(config.device),
        )
        try:
            outcome = evaluate_arms(config, specs, prompts, bench)
        except KeyboardInterrupt:
            if report is None:
                raise
            line = f"interrupted; what is measured is kept in {report}: the same command goes on"
            raise CommandError(130, line) from None
        if outcome is None:
            typer.echo(
                f"part {config.shard[0]} of {config.shard[1]} is measured; the report is written "
                "by the part that finishes last"
            )
            return
        typer.echo(markdown(outcome.values))
        if report is not None:
            write_report(outcome, report)
            typer.echo(f"wrote {report / 'report.html'}, report.md and report.json")
        if plots is not None:
            write_plots(outcome.values, plots)


def _scenes(
    model: str,
    report: Path | None,
    judge: Path | None,
    captions: int,
    chunks: int,
    clips: int,
    steps: str | None,
    guidance: float | None,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Held-out captions, images and continuations: tables of the judge."""
    from helios import __version__
    from helios.evaluation import JUDGE_FOLDER, AccuracyConfig, load_judge, measure, parse_steps
    from helios.pipeline import load
    from helios.storage import write_json

    pipe = load(model, device=device, dtype=dtype)
    network = load_judge(judge or JUDGE_FOLDER, pipe.device)
    config = AccuracyConfig(
        captions=captions,
        chunks=chunks,
        clips=min(clips, captions),
        steps=parse_steps(steps) if steps else None,
        guidance=guidance,
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
        "suite": "scenes",
        "settings": asdict(config) | {"parts": list(config.parts)},
        "device": str(pipe.device),
        "dtype": pipe.precision,
    }
    write_json(report / "report.json", values | result.to_json())
    (report / "report.md").write_text(text, "utf-8")


@contextmanager
def _folder(report: Path | None, shard: tuple[int, int]) -> Iterator[Path]:
    """Where records grow: the report's folder, or one that is gone afterwards."""
    if report is not None:
        # With the folder of the records, which would else be left behind empty.
        with output_folder(report / "records"):
            yield report
        return
    if shard[1] > 1:
        raise ValueError("several parts need one folder to meet in: give --report DIR")
    with tempfile.TemporaryDirectory(prefix="helios-evaluate-") as folder:
        yield Path(folder)


def _batch_size(device: torch.device) -> int:
    return 64 if device.type == "cuda" else 2


def _shard(text: str | None) -> tuple[int, int]:
    """``0/4``; without it what torchrun says, or everything."""
    if text is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    part, _, count = text.partition("/")
    if not part.isdigit() or not count.isdigit() or not int(part) < int(count):
        raise ValueError(f"shard must be like 0/4, the first of four, got {text!r}")
    return int(part), int(count)


def _lengths(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ValueError(f"lengths must be frames such as 81,240, got {text!r}") from None
