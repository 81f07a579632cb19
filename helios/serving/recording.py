"""What a stream has shown, on disk: the header, the fragments, and where each chunk lies.

Two files: ``recording.mp4``, playable at any time, and ``chunks.jsonl``, one line per chunk. A
line is written after its fragment, so whatever cuts a recording off, it ends with a whole chunk.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Recording"]

MEDIA, INDEX = "recording.mp4", "chunks.jsonl"


class Recording:
    """A growing recording in ``folder``; one writer at a time, every method blocks on the disk.

    Attributes:
        chunks: for each chunk what was said of it, with ``offset`` and ``bytes`` of its fragment.
        size: bytes of the recording.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chunks: list[dict[str, Any]] = []
        self.size = 0

    @property
    def path(self) -> Path:
        """The media file."""
        return self.folder / MEDIA

    @classmethod
    def begin(cls, folder: Path, header: bytes) -> Recording:
        """A new recording that holds the initialisation segment only."""
        own = cls(folder)
        own.path.write_bytes(header)
        (folder / INDEX).write_bytes(b"")
        own.size = len(header)
        return own

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """A recording as far as it is whole; what hangs over is cut off.

        Raises:
            OSError: if it is missing.
        """
        own = cls(folder)
        own.size = own.path.stat().st_size
        for line in (folder / INDEX).read_text("utf-8").splitlines():
            try:
                chunk = json.loads(line)
                whole = chunk["offset"] + chunk["bytes"] <= own.size
            except (ValueError, KeyError, TypeError):
                break
            if not whole:
                break
            own.chunks.append(chunk)
        return own

    @property
    def frames(self) -> int:
        """Frames of video."""
        last = self.chunks[-1] if self.chunks else None
        return 0 if last is None else int(last["start_frame"] + last["frames"])

    @property
    def header_size(self) -> int:
        """Bytes of the initialisation segment."""
        return int(self.chunks[0]["offset"]) if self.chunks else self.size

    def append(self, chunk: dict[str, Any], fragment: bytes) -> None:
        """Add a chunk.

        Raises:
            OSError: if the disk refuses; the recording is then as it was.
        """
        noted = chunk | {"offset": self.size, "bytes": len(fragment)}
        try:
            with self.path.open("r+b") as file:
                file.seek(self.size)
                file.write(fragment)
            with (self.folder / INDEX).open("ab") as index:
                index.write(json.dumps(noted, ensure_ascii=True).encode() + b"\n")
        except OSError:
            os.truncate(self.path, self.size)
            raise
        self.size += len(fragment)
        self.chunks.append(noted)

    def cut(self, chunks: int) -> None:
        """Keep the first ``chunks`` only."""
        if chunks >= len(self.chunks):
            return
        self.size = int(self.chunks[chunks]["offset"])
        del self.chunks[chunks:]
        os.truncate(self.path, self.size)
        lines = [json.dumps(chunk, ensure_ascii=True) + "\n" for chunk in self.chunks]
        (self.folder / INDEX).write_text("".join(lines), "ascii")

    def read(self, chunk: int) -> bytes:
        """The fragment of a chunk."""
        noted = self.chunks[chunk]
        with self.path.open("rb") as file:
            file.seek(noted["offset"])
            return file.read(noted["bytes"])

    def header(self) -> bytes:
        """The initialisation segment."""
        with self.path.open("rb") as file:
            return file.read(self.header_size)

    def copied(self, folder: Path, chunks: int, header: bytes) -> Recording:
        """A new recording in ``folder`` that begins with the first ``chunks`` of this one."""
        other = Recording.begin(folder, header)
        for chunk in range(min(chunks, len(self.chunks))):
            other.append(self.chunks[chunk], self.read(chunk))
        return other
