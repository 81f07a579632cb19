"""The line before the workers: live sessions wait here and are told their place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from helios.serving.config import Limits
from helios.serving.errors import ApiError
from helios.serving.metrics import Metrics
from helios.serving.worker.supervisor import Supervisor, WorkerProcess

__all__ = ["Line", "Place"]

Tell: TypeAlias = Callable[[int, int], Awaitable[None]]


class Place:
    """A place on a worker, held until ``leave``."""

    def __init__(self, line: Line, worker: WorkerProcess) -> None:
        self.worker = worker
        self._line = line

    def leave(self) -> None:
        """Let the next one in; again is harmless."""
        if self in self.worker.live:
            self.worker.live.discard(self)
            self._line.changed()


class Line:
    """Who waits for which workers, first come first served.

    Args:
        supervisor: of the workers.
        limits: places per worker and length of the line.
    """

    def __init__(self, supervisor: Supervisor, limits: Limits, metrics: Metrics) -> None:
        self._supervisor = supervisor
        self._limits = limits
        self._metrics = metrics
        self._waiting: list[tuple[object, frozenset[WorkerProcess]]] = []

    def changed(self) -> None:
        """Count again, and let those who wait look again."""
        self._metrics.sessions_active.set(sum(len(w.live) for w in self._supervisor.workers))
        self._metrics.sessions_waiting.set(len(self._waiting))
        self._supervisor.notify()

    def check(self) -> None:
        """Refuse a newcomer while no worker can be had and the line is full.

        Raises:
            ApiError: 429 ``queue_full`` or 503 ``not_ready``.
        """
        workers = self._supervisor.workers
        if not any(worker.ready for worker in workers):
            reason = next((w.reason for w in workers if w.reason), "starting")
            raise ApiError(503, "not_ready", f"no worker is ready: {reason.splitlines()[0]}")
        free = any(self._free(worker) for worker in workers)
        if not free and len(self._waiting) >= self._limits.line:
            raise ApiError(
                429, "queue_full", "too many sessions wait already", headers={"Retry-After": "10"}
            )

    async def enter(self, workers: list[WorkerProcess], tell: Tell) -> Place:
        """Wait for a place on one of ``workers``.

        Args:
            workers: any of them will do.
            tell: called with the own place (1: next) and how many wait, whenever they change.
        """
        if not any(self._free(worker) for worker in workers):
            self.check()
        me, mine = object(), frozenset(workers)
        self._waiting.append((me, mine))
        told: tuple[int, int] | None = None
        try:
            while True:
                before = [
                    other for other, theirs in self._before(me) if theirs & mine or theirs == mine
                ]
                free = [worker for worker in workers if self._free(worker)]
                if free and not before:
                    place = Place(self, min(free, key=lambda worker: len(worker.live)))
                    place.worker.live.add(place)
                    return place
                now = (len(before) + 1, sum(1 for _, theirs in self._waiting if theirs & mine))
                if now != told:
                    told = now
                    await tell(*now)
                    continue
                await self._supervisor.change(timeout=5.0)
        finally:
            with suppress(ValueError):
                self._waiting.remove((me, mine))
            self.changed()

    def _before(self, me: object) -> list[tuple[object, frozenset[WorkerProcess]]]:
        index = next(i for i, (other, _) in enumerate(self._waiting) if other is me)
        return self._waiting[:index]

    def _free(self, worker: WorkerProcess) -> bool:
        return worker.ready and len(worker.live) < self._limits.live
