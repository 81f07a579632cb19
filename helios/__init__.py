"""Helios: videos from a sentence, an image or a video, made chunk by chunk without end.

    pipe = helios.load("tiny")
    video = pipe("a red ball bounces on green grass", num_frames=132, seed=7)
    video.save("out.mp4")

Importing this costs nothing; PyTorch is loaded with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from helios.errors import (
    CheckpointCorruptError,
    CheckpointError,
    DivergedError,
    InputError,
    ResumableError,
    UnsafeCheckpointError,
)

if TYPE_CHECKING:
    from helios.history import DriftConfig
    from helios.pipeline import Chunk, GenerationConfig, Pipeline, Request, Video, load

__version__ = "0.1.0"

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "Chunk",
    "DivergedError",
    "DriftConfig",
    "GenerationConfig",
    "InputError",
    "Pipeline",
    "Request",
    "ResumableError",
    "UnsafeCheckpointError",
    "Video",
    "__version__",
    "load",
]

_ROOMS = {
    "Chunk": "helios.pipeline",
    "DriftConfig": "helios.history",
    "GenerationConfig": "helios.pipeline",
    "Pipeline": "helios.pipeline",
    "Request": "helios.pipeline",
    "Video": "helios.pipeline",
    "load": "helios.pipeline",
}
"""Where the names come from that are loaded when they are first needed."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'helios' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
