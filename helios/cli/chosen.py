"""The model that a command's options choose: refused at once, or loaded when it is first used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from helios.pipeline import Pipeline

__all__ = ["ChosenModel", "Device", "Dtype", "EngineSet", "LowMemory", "parse_engine"]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, or fp8: faster and smaller.")]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="On a GPU: text encoder in host memory, decoding in parts; slower.",
    ),
]
EngineSet = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        help="How it runs, as name=value (repeatable): reuse_history=chunk, an approximation, "
        "or tune_decoder=3.",
    ),
]


class ChosenModel:
    """A model and how it is to run; its small files are read here, its weights by ``load``.

    Args:
        name: bundled, a folder or a hub id.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32, bfloat16 or fp8.
        loras: adapter files and how much each counts.
        low_memory: see ``helios.load``.
        engine: fields of ``EngineConfig`` that are to be other than the default.

    Raises:
        ValueError: for a device, dtype or adapter that is not possible.
        CheckpointError: for a model that is unknown or incomplete, and adapters that do not fit.
    """

    def __init__(
        self,
        name: str,
        device: str,
        dtype: str,
        *,
        loras: Sequence[tuple[Path, float]] = (),
        low_memory: bool = False,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        from helios.pipeline import (
            check_lora,
            find_machine,
            inspect_model,
            pick_device,
            pick_dtype,
        )

        self.device = pick_device(device)
        self.machine = find_machine(self.device)
        self.dtype = pick_dtype(dtype, self.device, fp8=True)
        self.folder = inspect_model(name)
        for file, _ in loras:
            check_lora(file, self.folder.folder, self.dtype)
        self._loras, self._low_memory = loras, low_memory
        self._engine = dict(engine or {})
        self._pipeline: Pipeline | None = None

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size in pixels of which one chunk would not fit.

        Raises:
            MemoryError: saying how much is needed and how much is free.
        """
        from helios.pipeline import check_chunk_fits

        check_chunk_fits(
            self.folder, self.machine, self.dtype, height, width, low_memory=self._low_memory
        )

    def load(self) -> Pipeline:
        """The pipeline with its adapters, the same at every call."""
        if self._pipeline is None:
            from helios.pipeline import load_inspected

            pipeline = load_inspected(
                self.folder, self.device, self.dtype, low_memory=self._low_memory
            )
            if self._engine:
                pipeline.accelerate(replace(pipeline.engine.config, **self._engine))
            for number, (file, scale) in enumerate(self._loras, 1):
                name = file.stem if file.stem not in pipeline.loras else f"{file.stem}-{number}"
                pipeline.load_lora(file, name, scale)
            self._pipeline = pipeline
        return self._pipeline


def parse_engine(texts: Sequence[str], preview: Path | None = None) -> dict[str, Any]:
    """What is asked to be other than the default, by the names of ``EngineConfig``.

    Args:
        texts: ``name=value`` each.
        preview: folder of a preview decoder.

    Raises:
        ValueError: for a name or value that is not one of it.
    """
    from helios.pipeline import EngineConfig
    from helios.presets import override

    usual = EngineConfig()
    asked = override(usual, texts)
    if preview is not None:
        asked = replace(asked, preview=preview)
    values = {field.name: getattr(asked, field.name) for field in fields(asked)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}
