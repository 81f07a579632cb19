"""Results as they come: one small file per video, named after everything that made it.

A run that was killed goes on where it was, a run with other settings touches nothing of this one,
and two processes may fill one folder. A result is there only when it is complete: the numbers are
written last, and under another name until they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from helios.errors import CheckpointError
from helios.storage import atomic_path, read_json, read_tensors, write_json, write_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Record", "Results", "digest"]


CURVE = "curve "
"""What the names of curves begin with among the tensors."""


@dataclass(frozen=True)
class Record:
    """What was measured of one video.

    Attributes:
        values: numbers and settings, as stored.
        features: the judge's, float16 ``[chunks, F]``; empty without a judge.
        small: thumbnails of the first chunk, uint8.
        strip: a few frames side by side, WebP.
        curves: by name one value per chunk, float32; of an hour too many for a text file.
    """

    values: Mapping[str, Any]
    features: NDArray[np.float16]
    small: NDArray[np.uint8]
    strip: bytes
    curves: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Number of the prompt."""
        return int(self.values["index"])

    @property
    def prompt(self) -> str:
        """The text."""
        return str(self.values["prompt"])


def digest(identity: Mapping[str, Any]) -> str:
    """The name under which what ``identity`` describes is filed."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Results:
    """A folder of records.

    Args:
        folder: made if missing.
        reuse: whether records that are there count; otherwise they are made again.
    """

    def __init__(self, folder: Path, *, reuse: bool = True) -> None:
        self.folder = folder
        self._reuse = reuse
        self._own: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Record | None:
        """The record called ``key``; none if it is not there, or not whole."""
        if not self._reuse and key not in self._own:
            return None
        try:
            values = read_json(self.folder / f"{key}.json")
            tensors = read_tensors(self.folder, f"{key}.safetensors")
            strip = (self.folder / f"{key}.webp").read_bytes()
            features, small = tensors["features"].numpy(), tensors["small"].numpy()
        except (CheckpointError, OSError, KeyError):
            return None
        # Mapped files must not outlive what replaces them.
        curves = {
            name.removeprefix(CURVE): tensor.numpy().copy()
            for name, tensor in tensors.items()
            if name.startswith(CURVE)
        }
        return Record(values, features.copy(), small.copy(), strip, curves)

    def put(self, key: str, record: Record) -> None:
        """File ``record`` under ``key``, whole or not at all."""
        tensors = {
            "features": torch.from_numpy(np.ascontiguousarray(record.features)),
            "small": torch.from_numpy(np.ascontiguousarray(record.small)),
        }
        for name, values in record.curves.items():
            tensors[CURVE + name] = torch.from_numpy(np.ascontiguousarray(values))
        write_tensors(self.folder, tensors, f"{key}.safetensors")
        with atomic_path(self.folder / f"{key}.webp") as draft:
            draft.write_bytes(record.strip)
        write_json(self.folder / f"{key}.json", dict(record.values))
        self._own.add(key)
