"""One request, streamed: from text, image or video to chunks of frames."""

from helios.pipeline.adapters import check_lora
from helios.pipeline.build import (
    BUNDLED,
    ModelFolder,
    check_free,
    check_weights,
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
from helios.pipeline.engine import Engine, EngineConfig
from helios.pipeline.hub import PUBLISHED, HubFile, HubId, HubModel
from helios.pipeline.machines import MACHINES, Machine, find_machine
from helios.pipeline.memory import available_memory, resident_memory
from helios.pipeline.paths import stream_paths
from helios.pipeline.pipeline import Pipeline
from helios.pipeline.plan import (
    Forecast,
    check_chunk_fits,
    chunk_memory,
    decode_flops,
    forecast,
    forward_flops,
    measure,
)
from helios.pipeline.request import (
    Chunk,
    GenerationConfig,
    Request,
    Resolved,
    Video,
)
from helios.pipeline.session import KEPT_CHUNKS, Session
from helios.pipeline.start import read_start
from helios.pipeline.verify import verify_folder

__all__ = [
    "BUNDLED",
    "KEPT_CHUNKS",
    "MACHINES",
    "PUBLISHED",
    "Chunk",
    "Engine",
    "EngineConfig",
    "Forecast",
    "GenerationConfig",
    "HubFile",
    "HubId",
    "HubModel",
    "Machine",
    "ModelFolder",
    "Pipeline",
    "Request",
    "Resolved",
    "Session",
    "Video",
    "available_memory",
    "check_chunk_fits",
    "check_free",
    "check_lora",
    "check_weights",
    "chunk_memory",
    "cpu_bfloat16",
    "decode_flops",
    "find_machine",
    "find_model",
    "forecast",
    "forward_flops",
    "inspect_model",
    "load",
    "load_inspected",
    "measure",
    "pick_device",
    "pick_dtype",
    "published_defaults",
    "read_start",
    "resident_memory",
    "save",
    "stream_paths",
    "verify_folder",
]
