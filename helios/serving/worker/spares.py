"""Worker processes, started before they are needed: what takes long is loading the libraries.

A worker process loads its libraries and waits to be told which model it is for. One of them waits
for the day on which any worker of this server dies, so that a replacement has only the weights
left to read. The first of them takes only processor time that nobody else wants; where a worker
has died already, the next may die soon, so they take their share.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helios.serving.worker.transport import Message, send

__all__ = ["Spares", "WorkerEnd"]

ALLOCATOR = {"MALLOC_TOP_PAD_": str(64 << 20), "MALLOC_ARENA_MAX": "2"}
"""States that stay between large blocks that come and go would otherwise split the heap."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkerEnd:
    """A worker process and the line to it.

    Attributes:
        process: the child.
        reader: what it says.
        writer: what it is told.
    """

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def start(cls) -> WorkerEnd:
        """A new process, which begins to load its libraries.

        Raises:
            OSError: if there can be none.
        """
        own, other = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "helios.serving.worker", str(other.fileno()),
                pass_fds=(other.fileno(),), stdin=asyncio.subprocess.DEVNULL,
                env=ALLOCATOR | os.environ, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            own.close()
            raise
        finally:
            other.close()
        reader, writer = await asyncio.open_connection(sock=own, limit=1 << 20)
        return cls(process=process, reader=reader, writer=writer)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.returncode is None and not self.reader.at_eof()

    def tell(self, message: Message) -> None:
        """Say something; nothing happens if the process is gone."""
        with suppress(ConnectionError):
            send(self.writer, message)

    def kill(self) -> None:
        """End the process now."""
        with suppress(ProcessLookupError):
            self.process.kill()

    async def bury(self) -> int:
        """End the process and close the line; its exit code."""
        self.writer.close()
        self.kill()
        return await self.process.wait()


class Spares:
    """Processes that wait for a model.

    Args:
        count: how many; 0: every worker is started when it is needed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._ready: list[WorkerEnd] = []
        self._filling: asyncio.Task[None] | None = None

    @property
    def pids(self) -> list[int]:
        """Of those that wait."""
        return [spare.process.pid for spare in self._ready]

    async def take(self) -> WorkerEnd:
        """One that waits, or a new one.

        Raises:
            OSError: if there can be none.
        """
        while self._ready:
            spare = self._ready.pop()
            if spare.alive:
                _yields(spare.process.pid, False)
                return spare
            await spare.bury()
        return await WorkerEnd.start()

    def refill(self, *, soon: bool = False) -> None:
        """Start what is missing; called when there is time, that is when a worker is ready.

        Args:
            soon: whether it may be needed soon.
        """
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill(soon))

    async def _fill(self, soon: bool) -> None:
        with suppress(OSError):
            while len(self._ready) < self._count:
                spare = await WorkerEnd.start()
                if not soon:
                    _yields(spare.process.pid, True)
                self._ready.append(spare)

    async def stop(self) -> None:
        """End them."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        spares, self._ready = self._ready, []
        for spare in spares:
            await spare.bury()


def _yields(pid: int, idle: bool) -> None:
    """Whether every thread of ``pid`` runs only when nobody else wants to (Linux)."""
    if not hasattr(os, "SCHED_IDLE"):
        return
    policy = os.SCHED_IDLE if idle else os.SCHED_OTHER
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
