"""Frames to H.264 in fragments of MP4: the same for a file and for the wire."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]

__all__ = ["FRAME_RATES", "FragmentEncoder"]

FRAME_RATES = (1, 240)
"""Least and most frames a second, read and written."""
_CRF, _PRESET, _THREADS = "18", "veryfast", 2
_LEAST_TIMESCALE = 10_000
_LONGEST_FRAGMENT = 1 << 20
"""No key frame but the first of a fragment."""


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
            options["x264-params"] = _reproducible()
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


@cache
def _reproducible() -> str:
    """Settings of x264 for the same bytes on every machine, and on a busy one.

    Some of its code differs between processors unless it is told. With AVX-512 on a busy virtual
    machine, moreover, 14 of 1,528 fragments had other bytes than their repetitions, whatever the
    number of threads; with AVX2, which takes the same time, none of 487.
    """
    with suppress(OSError):
        if "avx512f" in Path("/proc/cpuinfo").read_text("utf-8", "replace"):
            return "cpu-independent=1:asm=avx2"
    return "cpu-independent=1"


def _boxes(data: bytes, *names: bytes) -> list[bytes]:
    """The top-level boxes of an MP4 with these names, in their order."""
    found, at = {}, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        found[data[at + 4 : at + 8]] = data[at : at + size]
        at += size
    return [found[name] for name in names]
