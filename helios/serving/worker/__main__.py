"""The process that owns the model: ``python -m helios.serving.worker FD``.

It is started by the front process, talks to it over one socket, and dies with it.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios.serving.logs import log
from helios.serving.worker.engine import Engine
from helios.serving.worker.transport import Channel, ClosedError, Message

if TYPE_CHECKING:
    from helios.pipeline import Pipeline

__all__ = ["main", "place_of"]


def main(arguments: list[str]) -> int:
    """``python -m helios.serving.worker FD``."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front process decides when to stop
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    _prepare()
    try:
        config, _ = channel.receive()
    except ClosedError:
        return 0
    try:
        pipeline = _load(config)
    except Exception as error:
        log("worker_start_failed", kind=type(error).__name__, detail=str(error)[:2000])
        channel.send({"event": "broken", "kind": type(error).__name__, "message": str(error)})
        return 1
    channel.send({"event": "ready", "model": _describe(pipeline)})
    Engine(pipeline, channel, borders=int(config["borders"]), faults=bool(config["faults"])).run()
    return 0


def _prepare() -> None:
    """Load what every model needs: most of the time of a start, and the same for all."""
    import av  # noqa: F401
    import PIL.Image
    import tokenizers  # noqa: F401
    from transformers.models.umt5 import modeling_umt5  # noqa: F401

    import helios.media
    import helios.pipeline  # noqa: F401

    PIL.Image.init()


def _load(config: Message) -> Pipeline:
    from helios.pipeline import load

    device = place_of(config["device"], config["number"])
    pipeline = load(config["model"], device, config["dtype"], low_memory=bool(config["low_memory"]))
    engine: dict[str, Any] = dict(config["engine"])
    if "preview" in engine:
        engine["preview"] = Path(engine["preview"])
    pipeline.accelerate(replace(pipeline.engine.config, **engine))
    for name, path in config["loras"].items():
        pipeline.load_lora(path, name, 0.0)
    return pipeline


def place_of(device: str, number: int) -> str:
    """Where a worker computes; those that may take any GPU share out all there are.

    Args:
        device: of the server: auto, cpu, cuda or cuda:N.
        number: of the worker among all of the server.

    Raises:
        ValueError: for a device that is not here.
    """
    import torch

    from helios.distributed import pick_device

    place = pick_device(device, number % max(1, torch.cuda.device_count()))
    if place.type == "cuda":
        # Kernels are launched on the current device, whatever device their tensors are on.
        torch.cuda.set_device(place)
    return str(place)


def _describe(pipeline: Pipeline) -> dict[str, Any]:
    """What can be asked of this model."""
    from helios.geometry import CHUNK_FRAMES, size_multiple

    defaults = pipeline.defaults
    memory = {"chunk": _chunk(pipeline, defaults.height, defaults.width), **_free(pipeline)}
    return {
        "name": pipeline.name,
        "defaults": defaults.to_json(),
        "scales": defaults.scales,
        "size_multiple": size_multiple(defaults.scales),
        "chunk_frames": CHUNK_FRAMES,
        "device": str(pipeline.device),
        "dtype": pipeline.precision,
        "loras": list(pipeline.loras),
        "memory": memory,
        "has_text_encoder": pipeline.text_encoder is not None,
    }


def _chunk(pipeline: Pipeline, height: int, width: int) -> int:
    """Bytes that making one chunk takes beside the weights."""
    from helios.pipeline import chunk_memory

    configs = pipeline.transformer.config, pipeline.codec.config
    cuda = pipeline.device.type == "cuda"
    return chunk_memory(
        *configs,
        height,
        width,
        pipeline.dtype,
        overlapped=cuda,
        low_memory=cuda and pipeline.codec.group > 0,
    )


def _free(pipeline: Pipeline) -> dict[str, int | None]:
    """Bytes that are left once the weights are there; of the device none if that is the host."""
    from helios.pipeline import available_memory

    free: int | None = None
    if pipeline.device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(pipeline.device)[0]
    return {"device_free": free, "host_free": available_memory()}


def _die_with_parent() -> None:
    """No worker outlives its front process, whatever kills that (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
