"""Where things lie: one function makes a path from an identifier, nobody else does.

Identifiers are ours, 128 random bits; what a client calls a file is never part of a path
(specification "reliability", 3.4).
"""

from __future__ import annotations

import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from helios.serving.config import Limits
from helios.serving.errors import ApiError

__all__ = ["Kind", "Store", "is_id", "new_id"]

Kind: TypeAlias = Literal["video", "session", "file"]
_ID = re.compile(r"(video|session|file)_[0-9a-f]{32}", re.ASCII)
_FOLDERS: dict[str, str] = {"video": "videos", "session": "sessions", "file": "uploads"}


def new_id(kind: Kind) -> str:
    """A new identifier."""
    return f"{kind}_{secrets.token_hex(16)}"


def is_id(text: str, kind: Kind) -> bool:
    """Whether ``text`` is an identifier of ``kind``; it says nothing about whether it exists."""
    match = _ID.fullmatch(text)
    return match is not None and match[1] == kind


class Store:
    """The data folder of a server.

    Args:
        root: made if missing.
        limits: quota and least free space.

    Raises:
        OSError: if the folder cannot be made or written.
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self._limits = limits
        self._used = 0
        for name in (*_FOLDERS.values(), "spool"):
            (self.root / name).mkdir(exist_ok=True)

    def folder(self, identifier: str) -> Path:
        """The folder of an item, whether it exists or not.

        Raises:
            ValueError: if ``identifier`` is none, or its folder leads out of the store.
        """
        match = _ID.fullmatch(identifier)
        if match is None:
            raise ValueError("not an identifier")
        path = (self.root / _FOLDERS[match[1]] / identifier).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError("a link that leads out of the store")
        return path

    def make(self, identifier: str) -> Path:
        """The folder of a new item."""
        folder = self.folder(identifier)
        folder.mkdir(mode=0o700)
        return folder

    def remove(self, identifier: str) -> None:
        """Remove an item's folder with all it holds."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder(identifier), ignore_errors=True)

    def spool(self) -> Path:
        """A new name for something that is being received."""
        return self.root / "spool" / secrets.token_hex(16)

    def sweep(self, known: set[str]) -> int:
        """Remove what no record knows and what was being received; how many there were."""
        count = 0
        for name in _FOLDERS.values():
            for folder in (self.root / name).iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)
                    count += 1
        for path in (self.root / "spool").iterdir():
            path.unlink(missing_ok=True)
            count += 1
        for pattern in ("*/*/.*", "*/*/*.partial*"):
            for path in self.root.glob(pattern):
                if path.parent.parent.name != "sessions" and path.is_file():
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    def measure(self) -> int:
        """Bytes of all files; slow, so it is not done for every request."""
        total = 0
        for path in self.root.rglob("*"):
            with suppress(OSError):
                total += path.lstat().st_size
        self._used = total
        return total

    def check_room(self, need: int = 0) -> None:
        """Refuse new work where there is no room for its result.

        Raises:
            ApiError: 507 ``insufficient_storage``.
        """
        free = shutil.disk_usage(self.root).free
        if free - need < self._limits.free or self._used + need > self._limits.quota:
            raise ApiError(
                507, "insufficient_storage", "there is no room for another result; delete some"
            )
