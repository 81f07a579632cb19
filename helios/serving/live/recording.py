"""What a stream has shown, on disk: the header, the fragments, and where each chunk lies.

Two files: ``recording.mp4``, playable at any time, and ``chunks.jsonl``, one line per chunk. A
line is written after its fragment, so whatever cuts a recording off, it ends with a whole chunk.
In memory a chunk takes sixteen bytes, so that a stream may go on for days.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

__all__ = ["INDEX", "MEDIA", "Recording", "note_of"]

MEDIA, INDEX = "recording.mp4", "chunks.jsonl"
_PICTURE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]{0,65536}={0,2}", re.ASCII)
_NUMBERS = ("chunk", "start_frame", "frames", "offset", "bytes")


class Recording:
    """A growing recording in ``folder``; one writer at a time, every method blocks on the disk.

    ``len`` is the number of its chunks.

    Attributes:
        size: bytes of the recording.
        frames: of the video so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = 0
        self.frames = 0
        self._offsets = array("Q")
        """Where each fragment begins in the media file."""
        self._lines = array("Q", [0])
        """Where each line begins in the index, and where the next one will."""

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def path(self) -> Path:
        """The media file."""
        return self.folder / MEDIA

    @property
    def index(self) -> Path:
        """The file that says where each chunk lies."""
        return self.folder / INDEX

    @classmethod
    def begin(cls, folder: Path, header: bytes) -> Recording:
        """A new recording that holds the initialisation segment only."""
        own = cls(folder)
        own.path.write_bytes(header)
        own.index.write_bytes(b"")
        own.size = len(header)
        return own

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """A recording as far as it is whole; what hangs over is cut off.

        Raises:
            OSError: if it is missing.
        """
        own = cls(folder)
        whole = own.path.stat().st_size
        own.size = whole
        with own.index.open("rb") as index:
            for line in index:
                noted = _parsed(line)
                begins = own.size if own._offsets else noted["offset"] if noted else 0
                if noted is None or not line.endswith(b"\n") or noted["offset"] != begins:
                    break
                if begins + noted["bytes"] > whole:
                    break
                own._add(noted, len(line))
        return own

    @property
    def header_size(self) -> int:
        """Bytes of the initialisation segment."""
        return self._offsets[0] if self._offsets else self.size

    def append(self, chunk: dict[str, Any], fragment: bytes) -> None:
        """Add a chunk.

        Raises:
            OSError: if the disk refuses; the recording is then as it was.
        """
        noted = chunk | {"offset": self.size, "bytes": len(fragment)}
        line = json.dumps(noted, ensure_ascii=True).encode() + b"\n"
        try:
            _write_at(self.path, self.size, fragment)
            _write_at(self.index, self._lines[-1], line)
        except OSError:
            os.truncate(self.path, self.size)
            os.truncate(self.index, self._lines[-1])
            raise
        self._add(noted, len(line))

    def _add(self, noted: dict[str, Any], line: int) -> None:
        self._offsets.append(noted["offset"])
        self._lines.append(self._lines[-1] + line)
        self.size = noted["offset"] + noted["bytes"]
        self.frames = noted["start_frame"] + noted["frames"]

    def cut(self, chunks: int) -> None:
        """Keep the first ``chunks`` only, and nothing that hangs over."""
        if chunks < len(self):
            self.size = self._offsets[chunks]
            del self._offsets[chunks:], self._lines[chunks + 1 :]
            last = self.noted(chunks - 1) if chunks else {"start_frame": 0, "frames": 0}
            self.frames = last["start_frame"] + last["frames"]
        os.truncate(self.index, self._lines[-1])
        os.truncate(self.path, self.size)

    def noted(self, chunk: int) -> dict[str, Any]:
        """What was said of a chunk, with ``offset`` and ``bytes`` of its fragment."""
        return next(self.notes(chunk))

    def notes(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """What was said of each chunk there is now, from number ``start`` on."""
        with self.index.open("rb") as index:
            index.seek(self._lines[start])
            for _ in range(start, len(self)):
                noted: dict[str, Any] = json.loads(index.readline())
                yield noted

    def read(self, chunk: int) -> bytes:
        """The fragment of a chunk."""
        end = self._offsets[chunk + 1] if chunk + 1 < len(self) else self.size
        with self.path.open("rb") as file:
            file.seek(self._offsets[chunk])
            return file.read(end - self._offsets[chunk])

    def header(self) -> bytes:
        """The initialisation segment."""
        with self.path.open("rb") as file:
            return file.read(self.header_size)

    def copied(self, folder: Path, chunks: int, header: bytes) -> Recording:
        """A new recording in ``folder`` that begins with the first ``chunks`` of this one."""
        other = Recording.begin(folder, header)
        for number, noted in zip(range(min(chunks, len(self))), self.notes(), strict=False):
            other.append(noted, self.read(number))
        return other


def note_of(folder: Path, chunk: int) -> dict[str, Any] | None:
    """What was said of a chunk of the recording in ``folder``, or of the last one before it."""
    noted = None
    with suppress(OSError), (folder / INDEX).open("rb") as index:
        for line in islice(index, chunk + 1):
            noted = _parsed(line) or noted
    return noted


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of an index, which may come from a file that a stranger sent; none: it is not one."""
    try:
        noted = json.loads(line)
        numbers = [noted[name] for name in _NUMBERS]
        good = (
            all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
            and isinstance(noted["prompt"], str)
            and all(isinstance(value, int | float) for value in noted["timings"].values())
            and noted["timings"].get("made", 0) >= 0
            and _PICTURE.fullmatch(noted["thumbnail"]) is not None
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return noted if good else None


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
