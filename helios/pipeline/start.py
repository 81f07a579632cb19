"""The start image or video of a request, as pixels: one gate for paths, arrays and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helios.errors import InputError
from helios.pipeline.request import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_start", "stretch"]


def read_start(request: Request) -> Request:
    """``request`` with its image as ``uint8 [H, W, 3]``, its video as ``uint8 [T, H, W, 3]``.

    Raises:
        InputError: for anything that cannot be read.
    """
    if request.image is not None:
        return replace(request, image=_image(request.image))
    if request.video is not None:
        return replace(request, video=_video(request.video))
    return request


def stretch(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """``uint8 [T, H, W, 3]`` at another size as diffusers makes it: Lanczos, nothing cut off."""
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    size, filter_ = (width, height), Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, filter_)) for frame in frames])


def _image(value: Any) -> NDArray[np.uint8]:
    """``uint8 [H, W, 3]`` of a path, an array or a PIL image."""
    if isinstance(value, str | Path):
        from helios.media import read_image

        return read_image(Path(value))
    if hasattr(value, "convert"):
        value = value.convert("RGB")
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"image must be a path or uint8 [H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    return array


def _video(value: Any) -> NDArray[np.uint8]:
    """``uint8 [T, H, W, 3]`` of a path or an array."""
    if isinstance(value, str | Path):
        from helios.media import read_video

        array = read_video(Path(value))[0]
    else:
        array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise InputError(
            f"video must be a path or uint8 [T, H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    return array
