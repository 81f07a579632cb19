"""``helios train``: a preset, changed by ``--set``, trained in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    preset: Annotated[
        str, typer.Argument(help="Such as tiny-codec, tiny-stage1, stage1; a wrong name lists all.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|PATH", help="Go on from the newest checkpoint, or from one."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/PRESET if not given.")
    ] = None,
    codec: Annotated[
        Path | None,
        typer.Option(help="Folder of the trained autoencoder; that of --initial if not given."),
    ] = None,
    initial: Annotated[
        Path | None, typer.Option(help="Folder of the model or run that training starts from.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--ablation",
            metavar="NAME",
            help="Take one remedy against drift away, such as no-anchor; may be repeated.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    memory: Annotated[
        bool, typer.Option("--memory", help="Print the memory it will need as JSON and stop.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the configuration as JSON and stop.")
    ] = False,
) -> None:
    """Train a model; starts under torchrun unchanged."""
    import json

    from helios.presets import ablation, override, training_preset
    from helios.training import to_json, training_memory
    from helios.training import train as run

    changes = [setting for name in without or [] for setting in ablation(name)]
    changes += settings or []
    for name, folder in (("codec", codec), ("initial", initial)):
        if folder is not None:
            changes.append(f"stage.{name}={folder}")
    config = override(training_preset(preset), changes)
    if show or memory:
        found = training_memory(config).to_json() if memory else to_json(config)
        typer.echo(json.dumps(found, indent=2))
        return
    run(config, out or Path("runs") / preset, resume=resume, device=device)
