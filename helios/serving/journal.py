"""Records that survive a crash: jobs, sessions and uploads, in SQLite, synced with every change.

All records are also in memory, so that reading one costs nothing; the file is read at the start
only. A record belongs to whoever made it, and nobody else can tell that it exists.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helios.serving.logs import log

__all__ = ["Journal", "Record"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, owner TEXT NOT NULL, created REAL NOT NULL,
    document TEXT NOT NULL
)
"""
VERSION = 1


@dataclass(eq=False)
class Record:
    """One job, session or upload.

    Attributes:
        id: of the item.
        kind: ``video``, ``session`` or ``file``.
        owner: name of the key that made it.
        created: when, in seconds since 1970.
        document: everything else, ready for JSON.
    """

    id: str
    kind: str
    owner: str
    created: float = field(default_factory=time.time)
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def expires(self) -> float | None:
        """When it may be removed."""
        value: float | None = self.document.get("expires")
        return value


class Journal:
    """The records of one server.

    Args:
        path: the SQLite file, made if missing.

    Raises:
        OSError: if it cannot be opened, or another server uses it.
    """

    def __init__(self, path: Path) -> None:
        self._records: dict[str, Record] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._thread.submit(self._open, path).result()

    def _open(self, path: Path) -> None:
        try:
            self._file = sqlite3.connect(path, isolation_level=None, timeout=2.0)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            # One server per data folder: a second one fails here.
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("BEGIN EXCLUSIVE")
            self._file.execute(_SCHEMA)
            self._file.execute("COMMIT")
            rows = self._file.execute("SELECT id, kind, owner, created, document FROM records")
            for row in rows.fetchall():
                self._read(*row)
        except sqlite3.Error as error:
            raise OSError(
                f"the journal {path} cannot be used ({error}); is another server running with the "
                "same data folder?"
            ) from None

    def _read(self, name: str, kind: str, owner: str, created: float, document: str) -> None:
        try:
            self._records[name] = Record(name, kind, owner, created, json.loads(document))
        except ValueError:
            log("journal_record_damaged", record=name)

    def get(self, name: str, owner: str | None = None) -> Record | None:
        """The record, if it is there and of ``owner`` (none: of anybody)."""
        record = self._records.get(name)
        if record is None or (owner is not None and record.owner != owner):
            return None
        return record

    def all(self, kind: str, owner: str | None = None) -> Iterator[Record]:
        """Records of a kind, the oldest first."""
        found = (r for r in self._records.values() if r.kind == kind)
        return iter(
            sorted(
                (r for r in found if owner is None or r.owner == owner),
                key=lambda r: (r.created, r.id),
            )
        )

    def names(self) -> set[str]:
        """All identifiers."""
        return set(self._records)

    async def put(self, record: Record, **changes: Any) -> None:
        """Make ``record`` with ``changes`` durable; it has them once they are on the disk.

        Nobody is told of them before, so what was seen once is still so after a crash.

        Raises:
            OSError: if it cannot be written; a new record is forgotten.
        """
        new = record.id not in self._records
        # Known from here on, so that it can be removed meanwhile.
        self._records[record.id] = record
        row = (
            record.id,
            record.kind,
            record.owner,
            record.created,
            json.dumps(record.document | changes, ensure_ascii=True),
        )
        try:
            await self._do("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)", row)
        except OSError:
            if new:
                self._records.pop(record.id, None)
            raise
        record.document |= changes

    async def remove(self, name: str) -> None:
        """Forget a record."""
        self._records.pop(name, None)
        await self._do("DELETE FROM records WHERE id = ?", (name,))

    async def _do(self, statement: str, values: tuple[Any, ...]) -> None:
        def work() -> None:
            try:
                self._file.execute(statement, values)
            except sqlite3.Error as error:
                raise OSError(f"the journal cannot be written: {error}") from None

        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Write everything out and let go of the file."""
        self._thread.submit(lambda: self._file.close()).result()
        self._thread.shutdown()
