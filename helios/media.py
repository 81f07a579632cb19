"""Pictures and videos of people, in and out: the only place that opens or writes them.

Reading is one gate with an allow-list and limits that hold before pixels are decoded (specification
"reliability", section 3.2): the format is told by the content, never by the name; nothing but the
given file is opened; every refusal is one line of ours. Writing is H.264 in fragments of MP4, the
same for a file and for the wire; a file is encoded in the background, playable while it grows and
renamed when complete (section 3.4).
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import queue
import tempfile
import threading
import warnings
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeAlias

import numpy as np

from helios.errors import InputError
from helios.files import atomic_path, sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]

__all__ = [
    "FragmentEncoder",
    "VideoWriter",
    "check_output",
    "plain_mp4",
    "read_image",
    "read_settings",
    "read_video",
]

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
FRAME_RATES = (1, 240)

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_CRF, _PRESET, _THREADS = "18", "veryfast", 2
_LEAST_TIMESCALE = 10_000
_LONGEST_FRAGMENT = 1 << 20
"""No key frame but the first of a fragment."""
_QUEUED_BATCHES = 2


# ------------------------------------------------------------------------------------- reading


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
                f"image {_shown(path)} is too large: at most {IMAGE_PIXELS:,} pixels are read"
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"image {_shown(path)} is not a picture we read; use PNG, JPEG, WebP, BMP or GIF"
            ) from error
        except Exception as error:  # a hostile file can make the decoder raise anything
            raise InputError(f"image {_shown(path)} is damaged or cut short") from error


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
        raise InputError(f"video {_shown(path)} has no frame that can be decoded")
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
            raise InputError(f"{what} {_shown(path)} does not exist")
        if not path.is_file():
            raise InputError(f"{what} {_shown(path)} is not a file")
        file = path.open("rb")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a possible file name"
        raise InputError(f"{what} {_shown(path)} cannot be read: {reason}") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise InputError(f"{what} {_shown(path)} is empty")
        if limit is not None and size > limit:
            raise InputError(
                f"{what} {_shown(path)} has {size / MIB:.1f} MiB; "
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
            f"{what} {_shown(path)} is {width}x{height}; at most {side} pixels a side and "
            f"{pixels:,} pixels {of} are read"
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{what} {_shown(path)} is {width}x{height}; at least {MIN_SIDE} a side are needed"
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
            raise InputError(f"video {_shown(path)} is not an MP4, MOV, WebM or MKV file")
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
            raise InputError(f"video {_shown(path)} is damaged or cut short") from error


def _check_streams(path: str | Path, container: Any) -> None:
    streams = container.streams.video
    if len(streams) != 1:
        raise InputError(
            f"video {_shown(path)} has {len(streams)} video streams; exactly one is needed"
        )
    codec = streams[0].codec_context
    name = codec.codec.canonical_name if codec is not None else "unknown"
    if name not in VIDEO_CODECS:
        raise InputError(f"video {_shown(path)} is coded as {name}; use H.264, HEVC, VP9 or AV1")


def _check_video(path: str | Path, container: Any, stream: Any, limited: bool) -> float:
    """Refuse what the header already tells is too much; returns the frame rate."""
    _check_size("video", path, stream.codec_context.width, stream.codec_context.height)
    seconds = (container.duration or 0) / 1_000_000
    if limited and seconds > VIDEO_SECONDS + 0.5:
        raise InputError(
            f"video {_shown(path)} is {seconds:.0f} seconds long; at most {VIDEO_SECONDS} are read"
        )
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    low, high = FRAME_RATES
    if not low <= rate <= high:
        raise InputError(
            f"video {_shown(path)} has {rate:g} frames a second; {low} to {high} are read"
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
                    f"video {_shown(path)} changes its size on the way; one size is needed"
                )
            frames.append(pixels)
            if max_frames is None and len(frames) > VIDEO_FRAMES:
                raise InputError(
                    f"video {_shown(path)} has more than {VIDEO_FRAMES} frames; "
                    "cut it to the part to use"
                )
            if len(frames) * pixels.nbytes > DECODED_BYTES:
                raise InputError(
                    f"video {_shown(path)} is too large in all at {frame.width}x{frame.height}; "
                    "make it smaller or shorter"
                )
            if len(frames) == max_frames:
                return frames
    # A growing MP4 declares no number, and is read as far as it goes.
    if declared and whole < declared:
        raise InputError(f"video {_shown(path)} is damaged or cut short")
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


# ------------------------------------------------------------------------------------- writing


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Refuse, before any work, a place where no video can be written. Leaves nothing there.

    Raises:
        ValueError: if the name does not end in ``.mp4``.
        FileExistsError: if ``path`` exists and ``overwrite`` is off.
        OSError: if the folder is missing or not writable, or ``path`` is a folder.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"the output must be named NAME.mp4, got {_shown(path)}")
    try:
        folder, exists = path.is_dir(), os.path.lexists(path)
        parent = path.parent.is_dir()
        if parent and not folder and (overwrite or not exists):
            with suppress(FileNotFoundError):
                _partial(path).lstat()
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except (OSError, ValueError) as error:
        raise _write_error(path, error) from None
    if folder:
        raise IsADirectoryError(f"{_shown(path)} is a folder; give the name of a file")
    if exists and not overwrite:
        raise FileExistsError(
            f"{_shown(path)} already exists; give another name or allow overwriting"
        )
    if not parent:
        raise FileNotFoundError(f"folder {_shown(path.parent)} does not exist; create it first")


class FragmentEncoder:
    """Frames to fragments of one MP4 (H.264), each complete in itself.

    A fragment begins with a key frame and depends on its own frames and its place only, so a
    stream can stop, go on elsewhere or branch, and what is joined after ``header`` is a valid file.

    Args:
        width: pixels, even.
        height: pixels, even.
        fps: frames per second of playback.
        metadata: settings kept in the header as JSON; see `read_settings`.
        start: number of the first frame.

    Raises:
        ValueError: if the size is odd or the rate impossible.
    """

    def __init__(
        self,
        width: int,
        height: int,
        fps: float = 24,
        metadata: Mapping[str, Any] | None = None,
        *,
        start: int = 0,
    ) -> None:
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise ValueError(
                f"a video of {width}x{height} cannot be stored: width and height must be even"
            )
        if not FRAME_RATES[0] <= fps <= FRAME_RATES[1]:
            raise ValueError(f"fps must be from {FRAME_RATES[0]} to {FRAME_RATES[1]}, got {fps}")
        self.size = (height, width)
        self.fps = Fraction(fps).limit_denominator(1001)
        self.frames = start
        """Number of the next frame."""
        self._fragments = 0
        self._scale = self.fps.numerator
        while self._scale < _LEAST_TIMESCALE:
            self._scale *= 2
        self._comment = json.dumps(dict(metadata or {}))
        self._header: bytes | None = None

    @property
    def header(self) -> bytes:
        """What a file or a player needs before the first fragment (``ftyp`` and ``moov``)."""
        if self._header is None:
            self._header = b"".join(_boxes(self._encode(()), b"ftyp", b"moov"))
        return self._header

    @property
    def mime(self) -> str:
        """Type for a browser, with the profile and level of the stream."""
        profile = self.header.partition(b"avcC")[2][1:4]
        return f'video/mp4; codecs="avc1.{profile.hex()}"'

    def check(self, frames: Pixels) -> Pixels:
        """``frames`` as an array, if they are ``uint8 [T, H, W, 3]`` of the right size."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*self.size, 3):
            height, width = self.size
            raise ValueError(
                f"frames must be uint8 [T, {height}, {width}, 3], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        return frames

    def encode(self, frames: Pixels) -> bytes:
        """The fragment (``moof`` and ``mdat``) of one frame or more, ``uint8 [T, H, W, 3]``."""
        frames = self.check(frames)
        moof, mdat = _boxes(self._encode(frames), b"moof", b"mdat")
        self._fragments += 1
        time = self.frames * self.fps.denominator * self._scale // self.fps.numerator
        self.frames += len(frames)
        # Every fragment is coded as if it were the first; its place is two numbers.
        place = {b"mfhd": (8, self._fragments.to_bytes(4)), b"tfdt": (8, time.to_bytes(8))}
        coded = bytearray(moof)
        for name, (offset, value) in place.items():
            at = coded.index(name) + offset
            coded[at : at + len(value)] = value
        return bytes(coded) + mdat

    def _encode(self, frames: Pixels | tuple[()]) -> bytes:
        """An MP4 of ``frames`` alone, in one fragment."""
        import av
        from av.video.frame import VideoFrame
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        sink = io.BytesIO()
        flags = {
            "movflags": "frag_custom+empty_moov+default_base_moof",
            "video_track_timescale": str(self._scale),
        }
        with av.open(sink, "w", format="mp4", container_options=flags) as container:
            container.metadata["comment"] = self._comment
            options = {"crf": _CRF, "preset": _PRESET, "sc_threshold": "0"}
            stream: Any = container.add_stream("libx264", rate=self.fps, options=options)
            stream.height, stream.width = self.size
            stream.pix_fmt = "yuv420p"
            codec = stream.codec_context
            codec.time_base = 1 / self.fps
            codec.gop_size = _LONGEST_FRAGMENT
            codec.max_b_frames = 0  # every fragment starts at its own time
            codec.thread_count = _THREADS  # a fixed number: the same bytes on every machine
            codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
            codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            container.start_encoding()
            for index, pixels in enumerate(frames):
                frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
                frame.pts, frame.time_base = index, codec.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return sink.getvalue()


def _boxes(data: bytes, *names: bytes) -> list[bytes]:
    """The top-level boxes of an MP4 with these names, in their order."""
    found, at = {}, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        found[data[at + 4 : at + 8]] = data[at : at + size]
        at += size
    return [found[name] for name in names]


class VideoWriter:
    """Writes an H.264 MP4 while frames arrive.

    Frames are encoded by a thread of its own into ``NAME.partial.mp4``, which plays at any time up
    to a second before what is encoded. Leaving the ``with`` block completes the video and gives it
    its name in one step; until then ``path`` is as it was. After an interruption (Ctrl-C) the
    partial file stays, with every frame written so far; after any other exception it is removed.

    Args:
        path: the finished file, ``NAME.mp4``.
        width: pixels, even.
        height: pixels, even.
        fps: frames per second of playback.
        metadata: settings kept in the file as JSON (tag ``comment``); see `read_settings`.
        overwrite: whether an existing file may be replaced.
        fragment_frames: frames from one key frame to the next, which the partial file grows by; a
            second if not given.

    Raises:
        ValueError: if the size is odd or the rate impossible, or as `check_output`.
        OSError: as `check_output`; later, from any method, when the disk refuses.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float = 24,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        *,
        fragment_frames: int | None = None,
    ) -> None:
        self._encoder = FragmentEncoder(width, height, fps, metadata)
        self._fragment = fragment_frames or max(1, round(fps))
        check_output(path, overwrite)
        self.path = Path(path)
        self.partial = _partial(self.path)
        self.frames = 0
        """Frames accepted so far."""
        self._overwrite = overwrite
        self._batches: queue.Queue[Pixels | None] = queue.Queue(_QUEUED_BATCHES)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._discard = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort(keep=not issubclass(kind, Exception))

    def write(self, frames: Pixels) -> None:
        """Append frames ``uint8 [T, H, W, 3]``; returns at once unless two batches are waiting."""
        frames = self._encoder.check(frames)
        if self._thread is None:
            self._start()
        # The caller may reuse its buffer while the thread still reads.
        self._put(frames.copy())
        self.frames += len(frames)

    def close(self) -> None:
        """Encode what is waiting and give the file its name; without frames a ``ValueError``."""
        if self.frames == 0:
            self.abort()
            raise ValueError(f"no frame was written to {_shown(self.path)}")
        try:
            self._finish()
        except Exception:
            self.partial.unlink(missing_ok=True)
            raise
        self._publish()

    def abort(self, keep: bool = False) -> None:
        """Stop; with ``keep`` the partial file stays, complete up to the last frame written."""
        self._discard = not keep
        with suppress(Exception):  # the reason for stopping is what the caller shall see
            self._finish()
        if not keep and self._thread is not None:
            self.partial.unlink(missing_ok=True)

    def _start(self) -> None:
        try:
            self.partial.unlink(missing_ok=True)
            sink = _Sink(self.partial)
        except OSError as error:
            raise _write_error(self.path, error) from None
        self._thread = threading.Thread(target=self._encode, args=(sink,), daemon=True)
        self._thread.start()

    def _put(self, batch: Pixels | None) -> None:
        """Hand a batch (or the end) to the thread, or raise what stopped it."""
        while True:
            if self._error is not None:
                raise self._failure()
            with suppress(queue.Full):
                self._batches.put(batch, timeout=0.1)
                return

    def _finish(self) -> None:
        """Let the thread encode what is waiting and end."""
        if self._thread is None:
            return
        if self._thread.is_alive():
            self._put(None)
        self._thread.join()
        if self._error is not None:
            raise self._failure()

    def _failure(self) -> BaseException:
        if isinstance(self._error, OSError):
            return _write_error(self.path, self._error)
        return RuntimeError(f"encoding {_shown(self.path)} failed: {self._error}")

    def _encode(self, sink: _Sink) -> None:
        """The thread: batches to fragments of MP4."""
        try:
            with sink:
                self._encode_into(sink)
                if sink.error is not None:
                    raise sink.error
        except BaseException as error:
            self._error = error

    def _encode_into(self, sink: _Sink) -> None:
        sink.write(self._encoder.header)
        waiting: list[Pixels] = []
        while (batch := self._batches.get()) is not None and not self._discard:
            waiting.extend(batch)
            while len(waiting) >= self._fragment:
                sink.write(self._encoder.encode(np.stack(waiting[: self._fragment])))
                del waiting[: self._fragment]
        if waiting and not self._discard:
            sink.write(self._encoder.encode(np.stack(waiting)))

    def _publish(self) -> None:
        """Give the finished video its name, with its index in front as players like it."""
        if not self._overwrite and os.path.lexists(self.path):
            raise FileExistsError(
                f"{_shown(self.path)} appeared meanwhile and was left as it is; "
                f"the video is in {_shown(self.partial)}"
            )
        try:
            plain_mp4(self.partial, self.path)
        except (OSError, ValueError):
            # No room for a second copy, say: the partial file is complete and plays as it is.
            try:
                self.partial.replace(self.path)
            except OSError as error:
                raise _write_error(self.path, error) from None
        self.partial.unlink(missing_ok=True)
        sync(self.path.parent)


def plain_mp4(source: Path, target: Path) -> None:
    """Copy the coded frames of ``source`` into an MP4 with its index first, whole or not at all.

    Raises:
        OSError: if ``target`` cannot be written.
        ValueError: if ``source`` holds no video.
    """
    import av

    flags = {"movflags": "faststart"}
    with atomic_path(target) as temporary:
        try:
            with (
                av.open(f"file:{source}") as old,
                av.open(f"file:{temporary}", "w", format="mp4", container_options=flags) as new,
            ):
                new.metadata["comment"] = old.metadata.get("comment", "{}")
                stream = old.streams.video[0]
                copy = new.add_stream_from_template(stream)
                for packet in old.demux(stream):
                    if packet.size:
                        packet.stream = copy
                        new.mux(packet)
        except (av.error.FFmpegError, IndexError) as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"{_shown(source)} holds no video") from error
        sync(temporary)


class _Sink:
    """A new file that only appends, and remembers the first error of the disk."""

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        # Exclusive: a link placed there meanwhile is not followed.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            self.error = self.error or error
            raise
        return len(data)


def _shown(path: str | Path) -> str:
    """``path`` for a message of one line, whatever characters it holds."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.stem}.partial.mp4")


def _write_error(path: Path, error: OSError | ValueError) -> OSError:
    """``error`` as one clear line about ``path``, of the same class."""
    number = getattr(error, "errno", None) or errno.EINVAL  # EINVAL: a NUL in the name, say
    kind = type(OSError(number, ""))
    clear = kind(f"cannot write {_shown(path)}: {os.strerror(number)}")
    clear.errno = number
    return clear
