"""From the wire's names to those of the library: what a worker is asked to make."""

from __future__ import annotations

import math
from typing import Any

from helios.geometry import CHUNK_FRAMES, FPS, check_size
from helios.serving.errors import ApiError
from helios.serving.protocol import MAX_AREA, MAX_JOB_FRAMES, OPENAI_SIZES, Generation

__all__ = ["as_made", "check_memory", "check_request", "length_of", "loras_of", "worker_request"]

_FRAMES_HELD = 4
"""Chunks of frames in host memory at once: one being made, two encoded, one being sent."""
_SAME = (
    "prompt", "negative_prompt", "num_frames", "seconds", "fps", "seed", "steps",
    "guidance_scale", "motion", "transition_chunks", "anti_drift", "amplify_first_chunk", "shift",
)  # fmt: skip
_MADE = (
    "negative_prompt", "num_frames", "fps", "seed", "steps", "guidance_scale",
    "amplify_first_chunk", "transition_chunks", "shift",
)  # fmt: skip


def worker_request(asked: Generation, multiple: int) -> tuple[dict[str, Any], list[str]]:
    """The fields of ``helios.Request``, and what has to be said about them.

    Args:
        asked: what came over the wire.
        multiple: of pixels that the model's sizes are made of.
    """
    warnings: list[str] = []
    values: dict[str, Any] = {}
    for name in _SAME:
        value = getattr(asked, name)
        if value is not None:
            values[name] = value
    if asked.motion is not None and asked.input_reference is None:
        values.pop("motion")
        warnings.append("motion has no effect without an input_reference")
    if asked.width is not None:
        values |= {"width": asked.width, "height": asked.height}
    if asked.size is not None:
        width, height = (int(side) for side in asked.size.split("x"))
        if asked.size in OPENAI_SIZES:
            near = _nearest(width, height, multiple)
            if near != (width, height):
                warnings.append(f"size {asked.size} was taken as {near[0]}x{near[1]}")
            width, height = near
        values |= {"width": width, "height": height}
    return values, warnings


def as_made(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request for what a file of Helios says that made it.

    Args:
        settings: out of the file, which may come from anybody: to be checked as a request is.
        defaults: of the model; what is as it makes it anyway is not asked for.
    """
    values = {name: settings[name] for name in _MADE if settings.get(name) is not None}
    if (settings.get("width"), settings.get("height")) != (defaults["width"], defaults["height"]):
        values |= {name: settings[name] for name in ("width", "height") if name in settings}
    if settings.get("anti_drift"):
        values["anti_drift"] = True
    return values


def _nearest(width: int, height: int, multiple: int) -> tuple[int, int]:
    """The nearest size that can be made, not above the bounds of the server."""
    scale = min(1.0, math.sqrt(MAX_AREA / (width * height)), 1280 / max(width, height))
    sides = [int(side * scale / multiple) * multiple for side in (width, height)]
    return sides[0], sides[1]


def loras_of(asked: Generation) -> dict[str, float]:
    """Scale of every adapter."""
    return {lora.name: lora.scale for lora in asked.loras}


def length_of(seconds: float | None, num_frames: int | None, fps: int | None) -> int | None:
    """Frames asked for, none if the checkpoint decides."""
    if seconds is not None:
        return max(1, min(MAX_JOB_FRAMES, round(seconds * (fps or FPS))))
    return num_frames


def check_memory(values: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse a size that this worker could not make even if it made nothing else.

    Args:
        values: of ``worker_request``.
        model: what the worker said of itself, with what one chunk of its own size takes.

    Raises:
        ApiError: 400 ``out_of_memory``, with what is needed and what there is.
    """
    defaults, memory = model["defaults"], model["memory"]
    height = values.get("height") or defaults["height"]
    width = values.get("width") or defaults["width"]
    # Tokens and feature maps grow with the area, and attention needs no more than they do.
    chunk = memory["chunk"] * height * width / (defaults["height"] * defaults["width"])
    frames = _FRAMES_HELD * CHUNK_FRAMES * height * width * 3
    on_host = memory["device_free"] is None
    need = {"memory": frames + chunk * on_host, model["device"]: 0 if on_host else chunk}
    free = {"memory": memory["host_free"], model["device"]: memory["device_free"]}
    for where, bytes_needed in need.items():
        there = free[where]
        if bytes_needed and there is not None and bytes_needed > there:
            raise ApiError(
                400,
                "out_of_memory",
                f"a video of {width}x{height} needs about {bytes_needed / 1e9:.1f} GB of {where} "
                f"and there are {there / 1e9:.1f} GB; ask for a smaller size",
                "size",
            )


def check_request(values: dict[str, Any], model: dict[str, Any]) -> None:
    """Refuse at once what the model's worker would refuse later.

    Args:
        values: of ``worker_request``.
        model: what the worker said of itself.

    Raises:
        ApiError: 400 ``invalid_value``, with the field.
    """
    defaults, scales = model["defaults"], model["scales"]
    height, width = values.get("height"), values.get("width")
    if width is not None and height is not None:
        try:
            check_size(height, width, scales)
        except ValueError as error:
            raise ApiError(400, "invalid_value", str(error), "size") from None
    steps = values.get("steps")
    if steps is not None and (1 if isinstance(steps, int) else len(steps)) != scales:
        text = "one number" if scales == 1 else f"{scales} numbers"
        raise ApiError(400, "invalid_value", f"steps must be {text} for this model", "steps")
    if isinstance(steps, tuple) and scales == 1:
        values["steps"] = steps[0]
    scale = values.get("guidance_scale")
    if defaults["distilled"] and scale is not None and scale > 1:
        raise ApiError(
            400, "invalid_value", "guidance_scale must be 1 for a distilled model", "guidance_scale"
        )
    if values.get("amplify_first_chunk") and scales == 1:
        raise ApiError(
            400,
            "invalid_value",
            "amplify_first_chunk needs a model with three scales",
            "amplify_first_chunk",
        )
