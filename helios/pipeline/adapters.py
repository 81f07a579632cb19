"""LoRA at use: load, scale, stack and unload by name; a stream takes it up with its next chunk."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from helios.kernels import E4M3
from helios.model import (
    Adapters,
    HeliosTransformer,
    TransformerConfig,
    adapters_of,
    empty_transformer,
    is_quantised,
    load_adapter,
)
from helios.storage import read_json

__all__ = ["LoraLoading", "check_lora"]

_NOT_IN_FP8 = (
    "a model in fp8 takes no LoRA: merge it first with helios export MODEL FOLDER --lora FILE, "
    "and use that folder"
)


class LoraLoading:
    """The part of a pipeline that changes what its transformer computes.

    A change waits while a chunk is sampled, so every chunk is made by one set of adapters, even
    when another thread asks.
    """

    transformer: HeliosTransformer

    def __init__(self) -> None:
        self._weights = threading.Lock()

    @property
    def loras(self) -> dict[str, float]:
        """Scale of every loaded LoRA by its name, in the order of loading."""
        return self._adapters.scales

    def load_lora(self, path: str | Path, name: str, scale: float = 1.0) -> None:
        """Load an adapter beside those that are there.

        Args:
            path: a safetensors file with PEFT's or diffusers' key names, or its folder.
            name: what to call it here.
            scale: how much it counts.

        Raises:
            ValueError: if the name is taken, the scale not finite, or the model in fp8.
            CheckpointError: if the file does not fit, listing why; nothing is changed.
        """
        self._adapters.check_new(name, scale)
        if is_quantised(self.transformer):
            raise ValueError(_NOT_IN_FP8)
        adapter = load_adapter(Path(path), self.transformer)
        with self._weights:
            self._adapters.add(name, adapter, scale)

    def set_lora_scale(self, name: str, scale: float) -> None:
        """Change how much a LoRA counts; 0 is as if it were not loaded."""
        with self._weights:
            self._adapters.set_scale(name, scale)

    def unload_lora(self, name: str) -> None:
        """Take a LoRA away; the weights are exactly what they were before it was loaded."""
        with self._weights:
            self._adapters.remove(name)

    def merge_loras(self) -> None:
        """Fold every LoRA into the weights for good, to save or export them as one model."""
        with self._weights:
            self._adapters.merge(keep=False)

    @property
    def _adapters(self) -> Adapters:
        return adapters_of(self.transformer)


def check_lora(path: str | Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Check by names and shapes that ``load_lora`` would succeed, without loading the model.

    Args:
        path: as there.
        folder: of the model.
        dtype: that it will be loaded in; none: it does not matter.

    Raises:
        ValueError: as there.
        CheckpointError: as there.
    """
    if dtype == E4M3:
        raise ValueError(_NOT_IN_FP8)
    config = TransformerConfig.from_json(read_json(folder / "transformer" / "config.json"))
    load_adapter(Path(path), empty_transformer(config))
