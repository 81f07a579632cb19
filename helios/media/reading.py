"""Pictures and videos of people, decoded.

One gate with an allow-list and limits that hold before pixels are decoded (specification
"reliability", section 3.2): the format is told by the content, never by the name; nothing but the
given file is opened; every refusal is one line of ours.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from helios.errors import InputError
from helios.files import shown
from helios.media.fragments import FRAME_RATES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]

__all__ = ["read_image", "read_settings", "read_video"]

MIB = 1 << 20
MIN_SIDE = 16
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
IMAGE_BYTES = 20 * MIB
IMAGE_SIDE = 8192
IMAGE_PIXELS = 33_500_000
VIDEO_CODECS = ("h264", "hevc", "vp9", "av1")
VIDEO_BYTES = 64 * MIB
VIDEO_SIDE = 4096
VIDEO_PIXELS = 9_500_000
VIDEO_SECONDS = 60
VIDEO_FRAMES = 1452
DECODED_BYTES = 4 << 30
"""What the frames of one video may take in memory."""

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def read_image(path: str | Path) -> Pixels:
    """The picture in ``path`` as ``uint8 [H, W, 3]``, upright.

    PNG, JPEG, WebP, BMP and GIF are read (of an animation the first frame). The EXIF orientation
    is applied, transparency is laid over white, grey and 16-bit pictures become 8-bit RGB.

    Raises:
        InputError: in one line, for anything else: missing, unreadable, another type, damaged, or
            larger than 20 MiB, 8192 pixels a side or 33.5 million pixels.
    """
    from PIL import Image, UnidentifiedImageError

    with _regular_file(path, "image", IMAGE_BYTES) as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file, formats=IMAGE_FORMATS) as image:
                    _check_size("image", path, *image.size)
                    return _upright_rgb(image)
        except (InputError, MemoryError):
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise InputError(
                f"image {shown(path)} is too large: at most {IMAGE_PIXELS:,} pixels are read"
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"image {shown(path)} is not a picture we read; use PNG, JPEG, WebP, BMP or GIF"
            ) from error
        except Exception as error:  # a hostile file can make the decoder raise anything
            raise InputError(f"image {shown(path)} is damaged or cut short") from error


def read_video(
    path: str | Path,
    max_frames: int | None = None,
    *,
    cover: tuple[int, int] | None = None,
) -> tuple[Pixels, float]:
    """The frames of the video in ``path`` as ``uint8 [T, H, W, 3]`` and its frames per second.

    MP4, MOV, WebM and MKV with H.264, HEVC, VP9 or AV1 are read. Frames come as stored: a variable
    frame rate is not resampled; a rotation noted in the file is applied.

    Args:
        path: the file.
        max_frames: stop after so many frames, whatever the length. Without it a video of more
            than 60 seconds or 1,452 frames is refused.
        cover: ``(height, width)`` that is enough: larger frames are reduced while they are decoded
            so that they just cover it, which keeps the memory of a 4K clip small. Smaller ones
            stay as they are.

    Raises:
        InputError: in one line, for a file that is missing, unreadable, of another type, damaged,
            without frames, or beyond 64 MiB, 4096 pixels a side, 9.5 million pixels a frame.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    # The limit on bytes guards against what was not asked for; a caller who names a number of
    # frames reads results of any length.
    size = VIDEO_BYTES if max_frames is None else None
    with _video(path, size) as container:
        stream = container.streams.video[0]
        rate = _check_video(path, container, stream, max_frames is None)
        frames = _decode(path, container, stream, max_frames, cover)
    if not frames:
        raise InputError(f"video {shown(path)} has no frame that can be decoded")
    return np.stack(frames), rate


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `VideoWriter` embedded in ``path``; empty if the video carries none.

    Raises:
        InputError: if ``path`` is not a readable video.
    """
    with _video(path, None) as container:
        comment = container.metadata.get("comment", "")
    try:
        settings = json.loads(comment)
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


@contextmanager
def _regular_file(path: str | Path, what: str, limit: int | None) -> Iterator[BinaryIO]:
    """The opened file, if it is one and neither empty nor over ``limit`` bytes."""
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{what} {shown(path)} does not exist")
        if not path.is_file():
            raise InputError(f"{what} {shown(path)} is not a file")
        file = path.open("rb")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a possible file name"
        raise InputError(f"{what} {shown(path)} cannot be read: {reason}") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise InputError(f"{what} {shown(path)} is empty")
        if limit is not None and size > limit:
            raise InputError(
                f"{what} {shown(path)} has {size / MIB:.1f} MiB; "
                f"at most {limit // MIB} MiB are read"
            )
        yield file


def _check_size(what: str, path: str | Path, width: int, height: int) -> None:
    """Refuse an image or a video by what its header says, before a pixel is decoded."""
    side, pixels, of = {
        "image": (IMAGE_SIDE, IMAGE_PIXELS, "in all"),
        "video": (VIDEO_SIDE, VIDEO_PIXELS, "a frame"),
    }[what]
    if max(width, height) > side or width * height > pixels:
        raise InputError(
            f"{what} {shown(path)} is {width}x{height}; at most {side} pixels a side and "
            f"{pixels:,} pixels {of} are read"
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{what} {shown(path)} is {width}x{height}; at least {MIN_SIDE} a side are needed"
        )


def _upright_rgb(image: Any) -> Pixels:
    """Eight-bit RGB of an opened picture, orientation applied, transparency over white."""
    from PIL import Image, ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel; a plain conversion would clip, not scale
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


@contextmanager
def _video(path: str | Path, limit: int | None) -> Iterator[Any]:
    """The opened container, with exactly one video stream of a known codec."""
    import av

    with _regular_file(path, "video", limit) as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _ISO_BOXES:
            kind = "mp4"
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            kind = "matroska"
        else:
            raise InputError(f"video {shown(path)} is not an MP4, MOV, WebM or MKV file")
        try:
            # The demuxer is ours to choose and no protocol is allowed, so a container cannot make
            # us open another file or address.
            options = {"protocol_whitelist": "none"}
            with av.open(file, format=kind, container_options=options) as container:
                _check_streams(path, container)
                yield container
        except (InputError, MemoryError):
            raise
        except Exception as error:  # a hostile file can make the decoder raise anything
            raise InputError(f"video {shown(path)} is damaged or cut short") from error


def _check_streams(path: str | Path, container: Any) -> None:
    streams = container.streams.video
    if len(streams) != 1:
        raise InputError(
            f"video {shown(path)} has {len(streams)} video streams; exactly one is needed"
        )
    codec = streams[0].codec_context
    name = codec.codec.canonical_name if codec is not None else "unknown"
    if name not in VIDEO_CODECS:
        raise InputError(f"video {shown(path)} is coded as {name}; use H.264, HEVC, VP9 or AV1")


def _check_video(path: str | Path, container: Any, stream: Any, limited: bool) -> float:
    """Refuse what the header already tells is too much; returns the frame rate."""
    _check_size("video", path, stream.codec_context.width, stream.codec_context.height)
    seconds = (container.duration or 0) / 1_000_000
    if limited and seconds > VIDEO_SECONDS + 0.5:
        raise InputError(
            f"video {shown(path)} is {seconds:.0f} seconds long; at most {VIDEO_SECONDS} are read"
        )
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    low, high = FRAME_RATES
    if not low <= rate <= high:
        raise InputError(
            f"video {shown(path)} has {rate:g} frames a second; {low} to {high} are read"
        )
    return rate


def _decode(
    path: str | Path,
    container: Any,
    stream: Any,
    max_frames: int | None,
    cover: tuple[int, int] | None,
) -> list[Pixels]:
    """All frames, counted as they are decoded: what the header says is not believed."""
    stream.thread_type = "AUTO"
    declared, whole = stream.frames, 0
    frames: list[Pixels] = []
    for packet in container.demux(stream):
        whole += packet.size > 0 and not packet.is_corrupt
        for frame in packet.decode():
            _check_size("video", path, frame.width, frame.height)
            pixels = _upright_frame(frame, cover)
            if frames and pixels.shape != frames[0].shape:
                raise InputError(
                    f"video {shown(path)} changes its size on the way; one size is needed"
                )
            frames.append(pixels)
            if max_frames is None and len(frames) > VIDEO_FRAMES:
                raise InputError(
                    f"video {shown(path)} has more than {VIDEO_FRAMES} frames; "
                    "cut it to the part to use"
                )
            if len(frames) * pixels.nbytes > DECODED_BYTES:
                raise InputError(
                    f"video {shown(path)} is too large in all at {frame.width}x{frame.height}; "
                    "make it smaller or shorter"
                )
            if len(frames) == max_frames:
                return frames
    # A growing MP4 declares no number, and is read as far as it goes.
    if declared and whole < declared:
        raise InputError(f"video {shown(path)} is damaged or cut short")
    return frames


def _upright_frame(frame: Any, cover: tuple[int, int] | None) -> Pixels:
    """RGB of a decoded frame, turned as the file says and no larger than ``cover`` needs."""
    turns, scale = round(frame.rotation / 90), 1.0
    if cover is not None:
        rows, columns = cover if turns % 2 == 0 else cover[::-1]
        scale = min(1.0, max(rows / frame.height, columns / frame.width))
    pixels: Pixels = frame.to_ndarray(
        format="rgb24",
        height=math.ceil(frame.height * scale),
        width=math.ceil(frame.width * scale),
        interpolation="AREA",
    )
    return np.rot90(pixels, turns) if turns else pixels
