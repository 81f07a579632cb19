"""``helios plan``: what a model will need here, before anything is downloaded or loaded."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Annotated

import typer

from helios.cli.chosen import Dtype, LowMemory

if TYPE_CHECKING:
    from helios.pipeline import Forecast

__all__ = ["plan"]


def plan(
    model: Annotated[str, typer.Argument(help="tiny, a folder, or a hub id.")],
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:N, or a device you may not have: h100 …")
    ] = "auto",
    size: Annotated[str | None, typer.Option(help="Width x height, such as 640x384.")] = None,
    dtype: Dtype = "auto",
    low_memory: LowMemory = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON, sizes in bytes.")
    ] = False,
) -> None:
    """Predict device memory, host memory, disk and speed; exit 5 if the model does not fit."""
    import torch

    from helios.cli.generate import parse_size
    from helios.pipeline import (
        MACHINES,
        find_machine,
        forecast,
        inspect_model,
        pick_device,
        pick_dtype,
    )

    width, height = (None, None) if size is None else parse_size(size)
    machine = MACHINES.get(device.lower().replace(" ", "").replace("-", ""))
    if machine is None:
        place = pick_device(device)
        machine = find_machine(place)
    else:
        place = torch.device("cuda")
    precision = pick_dtype(dtype, place, fp8=True)
    found = forecast(
        inspect_model(model),
        machine,
        precision,
        height=height,
        width=width,
        low_memory=low_memory,
    )
    typer.echo(json.dumps(found.to_json()) if json_output else _table(found))
    problems = found.problems()
    if "memory" in problems:
        raise MemoryError(problems["memory"])
    if "disk" in problems:
        raise OSError(errno.ENOSPC, problems["disk"])


def _table(found: Forecast) -> str:
    machine = found.machine
    rows = [
        (f"weights, {part}", _size(count), "in host memory" if part in found.away else "")
        for part, count in found.weights.items()
    ]
    if found.streamed:
        rows.append(("blocks from host memory", str(found.streamed), "for every pass"))
    rows += [
        ("activations", _size(found.activations), ""),
        (f"memory on {machine.name}", _size(found.device), _free(machine.memory)),
        ("host memory", _size(found.host), _free(machine.host)),
        ("disk", _size(found.disk), f"{_size(found.download)} to download"),
        ("work per chunk of 33 frames", f"{found.flops / 1e12:.1f} TFLOP", ""),
        (
            "frames a second",
            "unknown" if found.fps is None else f"{found.fps:.1f}",
            "" if found.fps is None else "expected after the first chunk",
        ),
    ]
    return "\n".join(f"{name:<28} {value:>12}  {note}".rstrip() for name, value, note in rows)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _free(count: float | None) -> str:
    return "" if count is None else f"of {_size(count)} free"
