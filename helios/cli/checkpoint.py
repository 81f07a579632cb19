"""``helios checkpoint verify``: is a model or a training checkpoint what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["checkpoint"]

checkpoint = typer.Typer(help="Look after saved models and training checkpoints.")


@checkpoint.callback()
def root() -> None:
    """Look after saved models and training checkpoints."""


@checkpoint.command()
def verify(
    folder: Annotated[
        str, typer.Argument(help="A training checkpoint, a model folder, tiny or a hub id.")
    ],
) -> None:
    """Check lengths, digests, headers and that every weight is finite; a line for every file."""
    from helios.pipeline import find_model, verify_folder

    path = Path(folder) if Path(folder).is_dir() else find_model(folder)
    verify_folder(path, typer.echo)
    typer.echo(f"{path}: whole")
