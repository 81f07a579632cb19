"""``helios export``: a model as a new folder; other dtype, shards, LoRAs merged, averaged."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export", "parse_bytes"]

_DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def export(
    model: Annotated[str, typer.Argument(help="tiny, a folder, or a hub id.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16, of transformer and text encoder.")
    ] = "bfloat16",
    shard_size: Annotated[
        str, typer.Option(help="A larger transformer becomes several files: 5GB, 500MB.")
    ] = "5GB",
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE[:SCALE] to merge into the weights (repeatable).")
    ] = None,
    average: Annotated[
        list[str] | None,
        typer.Option(help="Another training of the same network, to average with (repeatable)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing model folder.")] = False,
) -> None:
    """Write a model in the published layout, which diffusers reads as well."""
    import torch

    from helios.cli.generate import parse_lora
    from helios.model import average_weights
    from helios.pipeline import check_free, check_lora, inspect_model, load_inspected, measure, save

    if dtype not in _DTYPES:
        raise ValueError(f"--dtype must be {', '.join(_DTYPES)}, got {dtype!r}")
    precision: torch.dtype = getattr(torch, dtype)
    limit = parse_bytes(shard_size)
    adapters = [parse_lora(text) for text in lora or []]
    found, others = inspect_model(model), [inspect_model(name) for name in average or []]
    check_free(output, overwrite=overwrite)
    for path, _ in adapters:
        check_lora(path, found.folder)
    _check_disk(output, measure(found, precision).total)
    # The autoencoder is small, and everything seen passes through it: it keeps full precision.
    pipeline = load_inspected(found, torch.device("cpu"), precision, codec_dtype=torch.float32)
    if others:
        same = [load_inspected(other, torch.device("cpu"), precision) for other in others]
        average_weights(pipeline.transformer, [other.transformer for other in same])
        texts = [one.text_encoder for one in (pipeline, *same) if one.text_encoder is not None]
        if texts:
            average_weights(texts[0], texts[1:])
    for number, (path, scale) in enumerate(adapters):
        pipeline.load_lora(path, str(number), scale)
    if adapters:
        pipeline.merge_loras()
    typer.echo(save(pipeline, output, overwrite=overwrite, shard_bytes=limit))


def parse_bytes(text: str) -> int:
    """Bytes of ``5GB``, ``500MB`` or a plain number.

    Raises:
        ValueError: for anything else, or less than a megabyte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 10**6:
        raise ValueError(f"--shard-size must be a size such as 5GB, at least 1MB, got {text!r}")
    return count


def _check_disk(output: Path, need: int) -> None:
    """Refuse before loading what the disk has no room for."""
    place = next(p for p in (output.absolute(), *output.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"{need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
            str(place),
        )
