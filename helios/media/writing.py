"""A video file that grows while frames arrive.

It is encoded in the background, playable while it grows and renamed when complete (specification
"reliability", section 3.4).
"""

from __future__ import annotations

import errno
import os
import queue
import tempfile
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from helios.files import atomic_path, shown, sync
from helios.media.fragments import FragmentEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]

__all__ = ["VideoWriter", "check_output", "plain_mp4"]

_QUEUED_BATCHES = 2


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Refuse, before any work, a place where no video can be written. Leaves nothing there.

    Raises:
        ValueError: if the name does not end in ``.mp4``.
        FileExistsError: if ``path`` exists and ``overwrite`` is off.
        OSError: if the folder is missing or not writable, or ``path`` is a folder.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"the output must be named NAME.mp4, got {shown(path)}")
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
        raise IsADirectoryError(f"{shown(path)} is a folder; give the name of a file")
    if exists and not overwrite:
        raise FileExistsError(
            f"{shown(path)} already exists; give another name, or replace it with --overwrite "
            "(overwrite=True)"
        )
    if not parent:
        if os.path.lexists(path.parent):
            raise NotADirectoryError(f"{shown(path.parent)} is not a folder; give another place")
        raise FileNotFoundError(f"folder {shown(path.parent)} does not exist; create it first")


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
            raise ValueError(f"no frame was written to {shown(self.path)}")
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
        return RuntimeError(f"encoding {shown(self.path)} failed: {self._error}")

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
                f"{shown(self.path)} appeared meanwhile and was left as it is; "
                f"the video is in {shown(self.partial)}"
            )
        try:
            plain_mp4([(self.partial, None)], self.path)
        except (OSError, ValueError):
            # No room for a second copy, say: the partial file is complete and plays as it is.
            try:
                self.partial.replace(self.path)
            except OSError as error:
                raise _write_error(self.path, error) from None
        self.partial.unlink(missing_ok=True)
        sync(self.path.parent)


def plain_mp4(sources: Sequence[tuple[Path, int | None]], target: Path) -> None:
    """Copy coded frames into an MP4 with its index first, whole or not at all.

    Args:
        sources: videos of this library with one size and rate, in their order, each with how many
            of its frames are taken (none: all).
        target: the file.

    Raises:
        OSError: if ``target`` cannot be written.
        ValueError: if a source holds no video.
    """
    import av

    flags = {"movflags": "faststart"}
    with atomic_path(target) as temporary:
        try:
            with av.open(f"file:{temporary}", "w", format="mp4", container_options=flags) as new:
                _copy(sources, new)
        except (av.error.FFmpegError, IndexError) as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(f"{shown(sources[0][0])} holds no video") from error
        sync(temporary)


def _copy(sources: Sequence[tuple[Path, int | None]], new: Any) -> None:
    import av

    copy: Any = None
    index = 0
    for source, count in sources:
        with av.open(f"file:{source}") as old:
            stream = old.streams.video[0]
            if copy is None:
                new.metadata["comment"] = old.metadata.get("comment", "{}")
                copy = new.add_stream_from_template(stream)
            packets = (packet for packet in old.demux(stream) if packet.size)
            for packet in islice(packets, count):
                packet.time_base = 1 / stream.average_rate
                packet.pts = packet.dts = index
                packet.duration = 1
                packet.stream = copy
                new.mux(packet)
                index += 1


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


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.stem}.partial.mp4")


def _write_error(path: Path, error: OSError | ValueError) -> OSError:
    """``error`` as one clear line about ``path``, of the same class."""
    number = getattr(error, "errno", None) or errno.EINVAL  # EINVAL: a NUL in the name, say
    kind = type(OSError(number, ""))
    clear = kind(f"cannot write {shown(path)}: {os.strerror(number)}")
    clear.errno = number
    return clear
