"""Everything behind the routes, wired together once: the service that an app or a test starts."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from helios.serving.config import ServeConfig
from helios.serving.errors import ApiError
from helios.serving.jobs.queue import Jobs
from helios.serving.jobs.uploads import Uploads
from helios.serving.journal import Journal, Record
from helios.serving.live.connection import LiveConnection
from helios.serving.live.line import Line
from helios.serving.live.session import Session
from helios.serving.live.sessions import Sessions
from helios.serving.logs import log
from helios.serving.metrics import Metrics
from helios.serving.store import Store
from helios.serving.threads import make_threads
from helios.serving.worker.supervisor import Supervisor

__all__ = ["Service"]

HOUSEKEEPING_SECONDS = 15.0


class Service:
    """One server's workers, records and queues.

    Args:
        config: what the operator decided.

    Raises:
        OSError: if the data folder cannot be used, or another server uses it.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.store = Store(config.data, config.limits)
        self.journal = Journal(self.store.root / "journal.sqlite")
        self.supervisor = Supervisor(config, self.metrics)
        self.line = Line(self.supervisor, config.limits, self.metrics)
        self.uploads = Uploads(self)
        self.sessions = Sessions(self)
        self.jobs = Jobs(self)
        self.connections: set[LiveConnection] = set()
        self.draining = False
        self.disk_full = False
        self.began = time.time()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take up what the last life left, and start the workers; returns at once."""
        make_threads()
        await self.jobs.recover()
        swept = await asyncio.to_thread(self.store.sweep, self.journal.names())
        if swept:
            log("swept", items=swept)
        await self.supervisor.start()
        self._tasks = [
            asyncio.create_task(self._keep_house()),
            *(asyncio.create_task(self.jobs.work(worker)) for worker in self.supervisor.workers),
        ]

    async def drain(self, grace: float) -> None:
        """Accept nothing more, let running jobs finish within ``grace`` seconds, end the rest."""
        self.draining = True
        self.supervisor.notify()
        until = time.monotonic() + grace
        await asyncio.gather(*(connection.drain(grace) for connection in list(self.connections)))
        await self.jobs.finish(grace)
        # Sessions are parked while their connections end.
        while self.connections and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End everything; records are complete when this returns."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in list(self.sessions.live.values()):
            with suppress(Exception):
                await asyncio.wait_for(self.sessions.park(session), 2.0)
        await self.supervisor.stop()
        self.journal.close()

    def check_accepting(self) -> None:
        """Refuse new work while the server stops.

        Raises:
            ApiError: 503 ``server_draining``.
        """
        if self.draining:
            raise ApiError(
                503, "server_draining", "the server is stopping", headers={"Retry-After": "30"}
            )

    def check_disk(self) -> None:
        """Where a test lets the disk be full."""
        if self.disk_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def health(self, session: Session | None, place: int) -> dict[str, Any]:
        """What a live client is told every few seconds."""
        worker = session.stream.worker if session is not None else self.supervisor.workers[0]
        speed = worker.speed
        fps = session.settings["fps"] if session is not None else 24
        return {
            "worker": {"ready": worker.ready, "reason": worker.reason},
            "place": place,
            "sharing": int(worker.beat.get("streams", 0)),
            "queue_depth": self.jobs.waiting,
            "frames_per_second": round(speed, 2),
            "real_time": round(speed / fps, 3),
            "memory_bytes": worker.beat.get("memory"),
            "kept": session.kept if session is not None else None,
        }

    def status(self) -> dict[str, Any]:
        """What ``GET /v1/status`` says."""
        workers = [
            {
                "model": worker.info.get("name", worker.model),
                "ready": worker.ready,
                "reason": worker.reason,
                "device": worker.info.get("device"),
                "dtype": worker.info.get("dtype"),
                "streams": int(worker.beat.get("streams", 0)),
                "frames_per_second": round(worker.speed, 2),
                "memory_bytes": worker.beat.get("memory"),
                "restarts": worker.restarts,
            }
            for worker in self.supervisor.workers
        ]
        return {
            "object": "status",
            "ready": self.supervisor.ready and not self.draining,
            "draining": self.draining,
            "workers": workers,
            "queue_depth": self.jobs.waiting,
            "sessions_active": len(self.sessions.live),
            "uptime_seconds": round(time.time() - self.began, 1),
        }

    def measure(self) -> None:
        """Bring the gauges up to date that nobody counts."""
        own = _resident("self")
        self.metrics.rss.labels("front").set(own)
        total = own
        for worker in self.supervisor.workers:
            if worker.pid is not None:
                size = _resident(str(worker.pid))
                self.metrics.rss.labels(f"worker{worker.number}").set(size)
                total += size
            memory = worker.beat.get("memory")
            if memory is not None:
                self.metrics.accelerator.labels(str(worker.number)).set(memory)
        self.metrics.rss.labels("all").set(total)

    async def forget(self, record: Record) -> None:
        """Remove an item with its files."""
        await self.journal.remove(record.id)
        await asyncio.to_thread(self.store.remove, record.id)

    async def _keep_house(self) -> None:
        """Expired items go; what was used up by the others is measured anew."""
        while True:
            try:
                await self._tidy()
            except OSError as error:
                log("housekeeping_failed", detail=str(error))
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def _tidy(self) -> None:
        now = time.time()
        for kind in ("video", "session", "file"):
            for record in list(self.journal.all(kind)):
                busy = record.id in self.sessions.live or self.jobs.is_active(record.id)
                if record.expires is not None and record.expires < now and not busy:
                    await self.forget(record)
        await asyncio.to_thread(self.store.measure)


def _resident(process: str) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text("ascii").split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
