"""A start image or start video, made into the history the first chunk continues.

Source: specification "model and sampling", 7.4 to 7.7. Random numbers are drawn in the published
order, so a seed gives the start it gives there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS
from helios.history import PAST_FRAMES, History, start_noise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from helios.codec import Codec

__all__ = ["START_NOISE", "fit", "image_start", "video_start"]

START_NOISE = (0.111, 0.135)
"""Range of the noise on start images and videos that the published models were made for."""


def fit(frames: NDArray[np.uint8] | Tensor, height: int, width: int) -> Tensor:
    """Frames resized and centre-cropped to cover ``height`` x ``width`` exactly.

    The middle part of the right shape is cut out, then resized (bicubic, with antialiasing), so
    nothing is stretched; a picture of the right size stays as it is, to the last bit.

    Args:
        frames: ``uint8 [T, H, W, 3]``, or one picture ``[H, W, 3]``.
        height: pixels of the result.
        width: pixels of the result.

    Returns:
        ``float32 [1, 3, T, height, width]`` in [-1, 1].

    Raises:
        ValueError: if ``frames`` has another type or shape.
    """
    pixels = frames if isinstance(frames, torch.Tensor) else _as_tensor(frames)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(
            f"frames must be uint8 [T, H, W, 3], got {pixels.dtype} {list(pixels.shape)}"
        )
    count, rows, columns, _ = pixels.shape
    if min(count, rows, columns, height, width) < 1:
        raise ValueError(f"frames and size must not be empty, got {list(pixels.shape)}")
    tall = min(rows, max(1, round(columns * height / width)))
    wide = min(columns, max(1, round(rows * width / height)))
    top, left = (rows - tall) // 2, (columns - wide) // 2
    pixels = pixels[:, top : top + tall, left : left + wide].movedim(-1, 1)
    # One frame at a time: a large video is never held in floating point at its own size.
    result = pixels.new_empty((count, 3, height, width), dtype=torch.float32)
    for index in range(count):
        frame = pixels[index : index + 1].float() / 255.0
        if (tall, wide) != (height, width):
            frame = F.interpolate(frame, (height, width), mode="bicubic", antialias=True)
            frame = frame.clamp_(0.0, 1.0)
        result[index] = 2.0 * frame[0] - 1.0
    return result.movedim(0, 1)[None]


def image_start(
    codec: Codec,
    image: Tensor,
    generator: torch.Generator,
    *,
    image_noise: tuple[float, float] = START_NOISE,
    video_noise: tuple[float, float] = START_NOISE,
) -> History:
    """The history of a video that starts from ``image``.

    The anchor is the image's latent; the most recent frame is what the past would end in had it
    been a still shot: the last latent of 33 repetitions. Both are noised.

    Args:
        codec: encodes; its posterior is sampled.
        image: ``[B, 3, 1, H, W]`` in [-1, 1], of the size of the video.
        generator: advanced by the draws of specification 7.7, row "I2V".
        image_noise: lowest and highest noise level of the anchor.
        video_noise: likewise of the still shot.

    Raises:
        ValueError: if ``image`` is not one frame.
    """
    if image.ndim != 5 or image.shape[2] != 1:
        raise ValueError(f"image must be [B, 3, 1, H, W], got {list(image.shape)}")
    anchor = codec.encode(image, generator)
    still = codec.encode(image.expand(-1, -1, CHUNK_FRAMES, -1, -1), generator)[:, :, -1:]
    anchor = start_noise(anchor, *image_noise, generator)
    return History.from_image(anchor, start_noise(still, *video_noise, generator))


def video_start(
    codec: Codec,
    video: Tensor,
    generator: torch.Generator,
    *,
    image_noise: tuple[float, float] = START_NOISE,
    video_noise: tuple[float, float] = START_NOISE,
) -> History:
    """The history of a video that continues ``video``.

    The anchor is the first frame. Of the rest the last whole chunks of 33 frames count; only those
    that reach into the history (three) are encoded, while the draws of all are made, so the result
    is what encoding everything would give. A video shorter than a chunk is preceded by its first
    frame standing still, until it fills one.

    Args:
        codec: encodes; its posterior is sampled.
        video: ``[B, 3, T, H, W]`` in [-1, 1], of the size of the video to make.
        generator: advanced by the draws of specification 7.7, row "V2V".
        image_noise: lowest and highest noise level of the anchor.
        video_noise: likewise of the past, one level per latent frame.

    Raises:
        ValueError: if ``video`` has no frame.
    """
    if video.ndim != 5 or video.shape[2] < 1:
        raise ValueError(f"video must be [B, 3, T, H, W], got {list(video.shape)}")
    missing = CHUNK_FRAMES - video.shape[2]
    if missing > 0:
        video = torch.cat((video[:, :, :1].expand(-1, -1, missing, -1, -1), video), dim=2)
    count = video.shape[2] // CHUNK_FRAMES
    skipped = max(0, count - math.ceil(PAST_FRAMES / CHUNK_LATENTS))
    anchor = codec.encode(video[:, :, :1], generator)
    unused = anchor.expand(-1, -1, CHUNK_LATENTS, -1, -1)
    for _ in range(skipped):
        _draw_posterior(codec, unused, generator)
    chunks = [
        codec.encode(chunk, generator)
        for chunk in video[:, :, video.shape[2] - CHUNK_FRAMES * (count - skipped) :].split(
            CHUNK_FRAMES, dim=2
        )
    ]
    anchor = start_noise(anchor, *image_noise, generator)
    for _ in range(skipped):
        start_noise(unused, *video_noise, generator, per_frame=True)
    noisy = [start_noise(chunk, *video_noise, generator, per_frame=True) for chunk in chunks]
    return History.from_video(anchor, torch.cat(noisy, dim=2))


def _draw_posterior(codec: Codec, latents: Tensor, generator: torch.Generator) -> None:
    """Advance ``generator`` as sampling the posterior of one chunk would."""
    dtype = next(codec.network.encoder.parameters()).dtype
    torch.randn(latents.shape, generator=generator, device=generator.device, dtype=dtype)


def _as_tensor(frames: NDArray[np.uint8] | Any) -> Tensor:
    """A tensor over the array's memory where that is possible."""
    import numpy as np

    array = np.ascontiguousarray(frames)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
