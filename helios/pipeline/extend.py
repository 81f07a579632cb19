"""Going on with a finished clip: the same as a request with ``video``, and the clip can come along.

What is generated continues the last whole chunks of the clip (specification "model and sampling",
7.6); a session that was saved goes on exactly instead, see ``Pipeline.resume``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helios.conditioning import fit
from helios.errors import InputError
from helios.pipeline.request import Request, Video
from helios.pipeline.start import read_start

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helios.pipeline.pipeline import Pipeline

__all__ = ["extend"]


def extend(
    pipeline: Pipeline,
    clip: Video | str | Path | NDArray[np.uint8],
    prompt: Any = None,
    *,
    include_clip: bool = False,
    **fields: Any,
) -> Video | list[Video]:
    """Continue ``clip``; see ``Pipeline.extend``."""
    for name in ("video", "image"):
        if name in fields:
            raise ValueError(f"{name} is not possible here: the clip is what the video starts from")
    if prompt is None and fields.get("prompt_embeds") is None:
        prompt = _last_prompt(clip)
    rate = _rate(clip) if include_clip else None
    if rate is not None and fields.get("fps") is None:
        # One file has one rate: the clip keeps its own.
        fields["fps"] = rate
    source = clip.frames if isinstance(clip, Video) else clip
    request = read_start(Request.make(prompt=prompt, video=source, **fields))
    frames = np.asarray(request.video)
    made = pipeline(prompt, video=frames, **fields)
    videos = [
        _named(video, clip, frames if include_clip else frames[:0])
        for video in (made if isinstance(made, list) else [made])
    ]
    return videos if isinstance(made, list) else videos[0]


def _named(video: Video, clip: object, before: NDArray[np.uint8]) -> Video:
    """``video`` with the frames ``before`` it and the name of what it continues."""
    settings = dict(video.settings)
    if isinstance(clip, str | Path):
        settings["video"] = Path(clip).name
    settings["clip_frames"] = len(before)
    return replace(video, frames=_joined(before, video.frames), settings=settings)


def _joined(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Both in the size of ``after``; nothing is copied if there is nothing before."""
    if len(before) == 0:
        return after
    count, height, width = len(before), *after.shape[1:3]
    joined = np.empty((count + len(after), height, width, 3), np.uint8)
    joined[count:] = after
    if before.shape[1:3] == (height, width):
        joined[:count] = before
        return joined
    for index in range(count):
        shown = (fit(before[index], height, width)[0, :, 0] + 1) * 127.5
        joined[index] = shown.round().byte().movedim(0, -1).numpy()
    return joined


def _last_prompt(clip: object) -> str:
    """The prompt that the clip itself ends with."""
    settings: Any = {}
    if isinstance(clip, Video):
        settings = clip.settings
    elif isinstance(clip, str | Path):
        from helios.media import read_settings

        settings = read_settings(Path(clip))
    prompt = settings.get("prompt")
    if isinstance(prompt, list | tuple) and prompt and len(prompt[-1]) == 2:
        prompt = prompt[-1][1]
    if not isinstance(prompt, str):
        raise InputError("the clip does not say what it shows; give a prompt")
    return prompt


def _rate(clip: object) -> int | None:
    """Whole frames per second of the clip, none if it does not say."""
    if isinstance(clip, Video):
        return clip.fps
    if isinstance(clip, str | Path):
        from helios.media import read_video

        return min(max(round(read_video(Path(clip), max_frames=1)[1]), 1), 240)
    return None
