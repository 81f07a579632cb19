"""``helios pull``: bring a model of the hub here, whole and verified."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["pull"]


def pull(
    model: Annotated[
        str, typer.Argument(help="A hub id, such as BestWishYsh/Helios-Distilled[@REVISION].")
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; the newest if not given.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Hold what is already here against the hub's digests, too.")
    ] = True,
) -> None:
    """Download what a model needs: continues what was begun, checks the disk first, verifies."""
    from helios.pipeline import check_weights, inspect_model

    found = inspect_model(model, revision=revision)
    if found.hub is None:
        _say(f"{model} is on this machine already")
    elif found.hub.files is None:
        _say(f"{found.hub.id}: the hub was not asked; this is what is here")
    else:
        _say(
            f"{found.hub.id} at {found.hub.commit}, {found.hub.download_bytes / 1e9:.2f} GB to come"
        )
        found.hub.pull(_say, verify=verify)
    check_weights(found)
    typer.echo(found.folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
