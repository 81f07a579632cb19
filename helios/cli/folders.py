"""Folders that a command fills at its end: made before the minutes of work, not after them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["output_folder"]


@contextmanager
def output_folder(folder: Path | None) -> Iterator[None]:
    """Make ``folder`` and see that files can be written there; None is no folder at all.

    Whatever of it, or of the folders above it, was made here and is empty at the end is removed.

    Raises:
        OSError: if it is a file, or nothing can be written into it.
    """
    if folder is None:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        yield
    finally:
        for place in made:
            with suppress(OSError):
                # Fails, and shall, where something was written.
                place.rmdir()
