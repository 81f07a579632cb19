"""The front process's view of its workers: started, watched, replaced, and shared.

A worker is a process that may die or hang at any moment; then its streams fail with a code, it is
started again after 1, 2, 4 … 30 s, and after five deaths in five minutes it stays down with a
reason (specification "reliability", 3.7).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from helios.serving.config import ServeConfig
from helios.serving.errors import ApiError, from_worker
from helios.serving.logs import log
from helios.serving.metrics import Metrics
from helios.serving.worker.spares import Spares, WorkerEnd
from helios.serving.worker.transport import ClosedError, Message, receive

__all__ = ["BrokenModelError", "StreamHandle", "Supervisor", "WorkerProcess", "lost_worker"]

BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
MOST_CRASHES, CRASH_WINDOW = 5, 300.0


class BrokenModelError(RuntimeError):
    """A model that cannot be loaded; ``kind`` is the class of the worker's exception."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def lost_worker(code: str, why: str | None = None) -> ApiError:
    """What is said of a worker that died or hung, or in its own words what it lost a stream by."""
    return ApiError(503, code, why or "the worker is being replaced; resume the session")


class StreamHandle:
    """A stream of a worker, as seen from here.

    Attributes:
        events: what the worker said of it, with bytes; the worker never sends more than two
            chunks ahead of ``taken``.
        header: the initialisation segment.
        lost: why its worker is gone, once it is; whatever is asked then is refused with that code.
    """

    def __init__(self, worker: WorkerProcess, name: str) -> None:
        self.worker = worker
        self.name = name
        self.events: asyncio.Queue[tuple[Message, bytes]] = asyncio.Queue()
        self.header = b""
        self.info: Message = {}
        self.lost: str | None = None

    async def call(self, op: str, **values: Any) -> Message:
        """Ask the worker to do something with this stream.

        Raises:
            ApiError: if it refuses, or is lost: then with the code of the loss, now and later.
        """
        if self.lost is not None:
            raise lost_worker(self.lost)
        return await self.worker.call(op, stream=self.name, **values)

    def tell(self, op: str, **values: Any) -> None:
        """The same without an answer."""
        self.worker.tell(op, stream=self.name, **values)

    def taken(self) -> None:
        """One chunk reached its destination."""
        self.tell("taken")

    def close(self) -> None:
        """Forget it; a chunk being made is given up at its next step."""
        if self.worker.streams.pop(self.name, None) is not None:
            self.tell("close")


class WorkerProcess:
    """One worker, through all its lives.

    Args:
        config: of the server.
        model: what it loads.
        number: among all of the server: for the log, and for the GPU it takes.
        spares: where its processes come from.
        changed: called when it becomes ready or is lost.
    """

    def __init__(
        self,
        config: ServeConfig,
        model: str,
        number: int,
        metrics: Metrics,
        spares: Spares,
        changed: Callable[[], None],
    ) -> None:
        self.model = model
        self.number = number
        self.ready = False
        self.reason = "starting"
        self.info: Message = {}
        self.beat: Message = {}
        self.live: set[object] = set()
        self.job: object | None = None
        self.restarts = 0
        self.streams: dict[str, StreamHandle] = {}
        self.speed = 0.0
        """Frames per second of the last chunk."""
        self._config = config
        self._metrics = metrics
        self._spares = spares
        self._changed = changed
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._numbers = itertools.count(1)
        self._end: WorkerEnd | None = None
        self._made = 0
        self._heard = time.monotonic()
        self._crashes: deque[float] = deque(maxlen=MOST_CRASHES)
        self._loss = "worker_crashed"
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Of the process, none while there is none."""
        return None if self._end is None else self._end.process.pid

    async def run(self) -> None:
        """Keep a worker alive until ``stop``."""
        attempt = 0
        while True:
            self._made = 0
            await self._live()
            if self._stopped():
                return
            now = time.monotonic()
            self._crashes.append(now)
            self.restarts += 1
            self._metrics.worker_restarts.inc()
            many = len(self._crashes) == MOST_CRASHES and now - self._crashes[0] < CRASH_WINDOW
            if many:
                self.reason = f"the worker died {MOST_CRASHES} times in {CRASH_WINDOW:.0f} s"
                log("worker_given_up", worker=self.number)
                self._changed()
                return
            # It waits longer after lives in which nothing was made, which the next may repeat.
            attempt = 0 if self._made else attempt
            wait = BACKOFF[min(attempt, len(BACKOFF) - 1)]
            attempt += 1
            log("worker_restart", worker=self.number, after=wait)
            await asyncio.sleep(wait)

    def _stopped(self) -> bool:
        return self._stopping

    async def _live(self) -> None:
        """One life: from the start of the process to its end."""
        self._loss = "worker_crashed"
        try:
            end = self._end = await self._spares.take()
        except OSError as error:
            self.reason = f"the worker could not be started: {error.strerror}"
            return
        config = self._config
        end.tell(
            {
                "model": self.model,
                "number": self.number,
                "device": config.device,
                "dtype": config.dtype,
                "low_memory": config.low_memory,
                "engine": config.engine_json,
                "loras": {name: str(path) for name, path in config.loras.items()},
                "borders": config.limits.borders,
                "faults": config.faults,
            }
        )
        try:
            while True:
                message, body = await receive(end.reader)
                self._heard = time.monotonic()
                self._hear(message, body)
        except (ClosedError, OSError):
            pass
        finally:
            await self._bury()

    async def _bury(self) -> None:
        """After a life: nobody waits for this worker any more."""
        was_ready, self.ready = self.ready, False
        end, self._end = self._end, None
        if self.reason in ("", "starting"):
            self.reason = "the worker is being restarted"
        # Said before the process is buried, which takes time: who asks meanwhile is told why.
        for future in self._calls.values():
            if not future.done():
                future.set_exception(lost_worker(self._loss))
        self._calls.clear()
        for stream in list(self.streams.values()):
            stream.lost = self._loss
            failed = {"event": "failed", "stream": stream.name, "code": self._loss, "message": None}
            stream.events.put_nowait((failed, b""))
        self.streams.clear()
        self._changed()
        if end is not None:
            code = await end.bury()
            if not self._stopping:
                log("worker_lost", worker=self.number, exit=code, was_ready=was_ready)

    def _hear(self, message: Message, body: bytes) -> None:
        event = message.get("event")
        if event == "answer":
            future = self._calls.pop(message["call"], None)
            if future is not None and not future.done():
                future.set_result(message)
        elif event == "beat":
            self.beat = message
        elif event == "ready":
            self.info, self.ready, self.reason = message["model"], True, ""
            log("worker_ready", worker=self.number, model=self.model, process=self.pid)
            self._spares.refill(soon=self.restarts > 0)
            self._changed()
        elif event == "broken":
            self.reason = f"{message['kind']}: {message['message']}"
            self.broken = BrokenModelError(message["kind"], message["message"])
            self._changed()
        else:
            stream = self.streams.get(message.get("stream", ""))
            if stream is None:
                return
            if event == "header":
                stream.header = body
                return
            if event == "chunk":
                self.speed = message["frames"] / max(message["timings"]["made"], 1e-9)
                self._made += 1
                self._metrics.chunk(message)
                fps = stream.info.get("settings", {}).get("fps")
                if fps is not None:
                    self._metrics.real_time.set(self.speed / fps)
            stream.events.put_nowait((message, body))

    broken: BrokenModelError | None = None

    async def call(self, op: str, **values: Any) -> Message:
        """Ask, and wait for the answer.

        Raises:
            ApiError: if the worker refuses or is lost.
        """
        if self._end is None:
            raise ApiError(503, "not_ready", "the worker is not ready")
        number = next(self._numbers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self._end.tell({"op": op, "call": number, **values})
        try:
            answer = await future
        finally:
            self._calls.pop(number, None)
        if "code" in answer:
            raise from_worker(answer)
        return answer

    def tell(self, op: str, **values: Any) -> None:
        """Say something that needs no answer; nothing if the worker is gone."""
        if self._end is not None:
            self._end.tell({"op": op, **values})

    async def open(self, op: str, name: str, **values: Any) -> StreamHandle:
        """A new stream; ``op`` is ``open``, ``resume`` or ``branch`` (then with ``stream``)."""
        # Every life has a name of its own: what the last one still says must not reach the next.
        handle = StreamHandle(self, f"{name}/{next(self._numbers)}")
        self.streams[handle.name] = handle
        try:
            if op == "branch":
                handle.info = await self.call(op, new=handle.name, **values)
            else:
                handle.info = await self.call(op, stream=handle.name, **values)
        except BaseException:
            handle.close()
            raise
        return handle

    def watch(self) -> None:
        """Replace the worker if it gave no sign of life; called every second."""
        silent = time.monotonic() - self._heard
        if self.ready and silent > self._config.limits.watchdog and self._end is not None:
            log("worker_hangs", worker=self.number, seconds=round(silent, 1))
            self._loss = "timeout"
            self._end.kill()

    def kill(self) -> None:
        """End the process now."""
        self._stopping = True
        if self._end is not None:
            self._end.kill()

    async def stop(self) -> None:
        """End the process; streams fail with ``server_shutdown``."""
        self._stopping = True
        self._loss = "server_shutdown"
        end = self._end
        if end is None:
            return
        self.tell("shutdown")
        try:
            await asyncio.wait_for(end.process.wait(), 2.0)
        except TimeoutError:
            end.kill()


class Supervisor:
    """All workers of a server."""

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self._waiters: set[asyncio.Event] = set()
        self.spares = Spares(config.limits.spares)
        names = [model for model in config.models for _ in range(config.workers)]
        self.workers = [
            WorkerProcess(config, model, number, metrics, self.spares, self.notify)
            for number, model in enumerate(names)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def notify(self) -> None:
        """Wake everybody who waits for something to change."""
        for event in self._waiters:
            event.set()

    async def change(self, timeout: float | None = None) -> None:
        """Wait until a worker becomes ready, free or lost."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            # Not wait_for: it can lose a cancellation that comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await event.wait()
        finally:
            self._waiters.discard(event)

    async def start(self) -> None:
        """Start all of them; returns at once."""
        self._tasks = [asyncio.create_task(worker.run()) for worker in self.workers]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for worker in self.workers:
                worker.watch()

    async def stop(self) -> None:
        """End all of them."""
        await asyncio.gather(*(worker.stop() for worker in self.workers), self.spares.stop())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether every worker is ready: what ``/health/ready`` says."""
        return all(worker.ready for worker in self.workers)

    def of_model(self, model: str | None) -> list[WorkerProcess]:
        """Workers of ``model``; of the first model if none is named.

        Raises:
            ApiError: for a model this server does not have.
        """
        wanted = model or self.workers[0].model
        found = [worker for worker in self.workers if wanted in (worker.model, _short(worker))]
        if not found:
            known = ", ".join(dict.fromkeys(_short(worker) for worker in self.workers))
            raise ApiError(400, "invalid_value", f"model must be one of: {known}", "model")
        return found


def _short(worker: WorkerProcess) -> str:
    """The name of a model without its folder."""
    return worker.model.rstrip("/").rsplit("/", 1)[-1]
