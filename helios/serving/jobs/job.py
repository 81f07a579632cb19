"""A file job while it waits or runs, and those who watch it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from helios.serving.journal import Record
from helios.serving.live.recording import Recording
from helios.serving.worker.supervisor import StreamHandle

__all__ = ["Job"]


class Job:
    """A job that waits or runs.

    Attributes:
        record: in the journal.
        recording: what there is of it, once it runs.
        progress: what is told of each chunk, without its picture.
        started: when, by the monotonic clock.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.recording: Recording | None = None
        self.progress: list[dict[str, Any]] = []
        self.stream: StreamHandle | None = None
        self.ending: str | None = None
        """Code of the failure that was asked for: cancelled, server_shutdown."""
        self.version = 0
        self.accepted = time.monotonic()
        self._watchers: set[asyncio.Event] = set()
        self.stopped = asyncio.Event()

    def changed(self) -> None:
        """Tell everybody who watches."""
        self.version += 1
        for event in self._watchers:
            event.set()

    async def change(self, seen: int, timeout: float) -> int:
        """Wait until there is something newer than version ``seen``; the version there is then."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            if self.version == seen:
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await event.wait()
            return self.version
        finally:
            self._watchers.discard(event)

    def end(self, code: str) -> None:
        """Stop as soon as can be."""
        self.ending = self.ending or code
        self.stopped.set()
