"""What a stream starts from, as the front process hands it over: raw pixels, or a file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TAIL_FRAMES", "read_reference"]

TAIL_FRAMES = 165
"""Frames of the end of a result that are read: five chunks, more than the model remembers."""


def read_reference(media: dict[str, Any], height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """The fields of a request for ``media``.

    Args:
        media: ``path``, ``kind`` (image or video) and either ``shape`` (raw ``uint8`` pixels that
            the media gate wrote) or ``frames`` (an MP4 of ours with so many).
        height: of the video to be made.
        width: of the video to be made.
    """
    path = Path(media["path"])
    if "shape" in media:
        shape = tuple(int(n) for n in media["shape"])
        pixels = np.fromfile(path, np.uint8).reshape(shape)
        return {"image": pixels[0]} if media["kind"] == "image" else {"video": pixels}
    from helios.media import read_video

    frames, _ = read_video(path, int(media["frames"]), cover=(height, width))
    return {"video": frames[-TAIL_FRAMES:]}
