"""One request, streamed: from text, image or video to chunks of frames."""

from helios.pipeline.adapters import check_lora
from helios.pipeline.build import (
    BUNDLED,
    ModelFolder,
    cpu_bfloat16,
    find_model,
    inspect_model,
    load,
    load_inspected,
    pick_device,
    pick_dtype,
    published_defaults,
    save,
)
from helios.pipeline.memory import available_memory, resident_memory
from helios.pipeline.pipeline import Pipeline
from helios.pipeline.request import (
    Chunk,
    GenerationConfig,
    Request,
    Resolved,
    Video,
)
from helios.pipeline.session import KEPT_CHUNKS, Session
from helios.pipeline.start import read_start

__all__ = [
    "BUNDLED",
    "KEPT_CHUNKS",
    "Chunk",
    "GenerationConfig",
    "ModelFolder",
    "Pipeline",
    "Request",
    "Resolved",
    "Session",
    "Video",
    "available_memory",
    "check_lora",
    "cpu_bfloat16",
    "find_model",
    "inspect_model",
    "load",
    "load_inspected",
    "pick_device",
    "pick_dtype",
    "published_defaults",
    "read_start",
    "resident_memory",
    "save",
]
