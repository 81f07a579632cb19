"""File jobs: accepted work that is done whatever happens, or says why not.

A job is in exactly one of queued, in_progress, completed and failed. Every change of that is in
the journal before anybody is told. The worker only sends fragments; this process writes them, so
a worker that was replaced can publish nothing (specification "reliability", 3.4 and 3.7).
"""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from helios.geometry import CHUNK_FRAMES
from helios.serving.errors import ApiError
from helios.serving.jobs.job import Job
from helios.serving.jobs.making import Making
from helios.serving.journal import Record
from helios.serving.logs import log
from helios.serving.protocol import CreateVideo, ExtendVideo
from helios.serving.requests import (
    check_memory,
    check_request,
    length_of,
    loras_of,
    worker_request,
)
from helios.serving.store import is_id, new_id
from helios.serving.worker.supervisor import WorkerProcess

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["Jobs"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ACTIVE = ("queued", "in_progress")


class Jobs(Making):
    """All file jobs of a server."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._active: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._served: dict[str, float] = {}
        self._sending: set[str] = set()
        self._keys: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def one_at_a_time(self, owner: str, key: str) -> asyncio.Lock:
        """To be held while a job is looked for by its key, and made if there is none."""
        return self._keys.setdefault((owner, key), asyncio.Lock())

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    def is_active(self, name: str) -> bool:
        """Whether a job waits or runs."""
        return name in self._active

    def active(self, name: str) -> Job | None:
        """The job, while it waits or runs."""
        return self._active.get(name)

    def place(self, name: str) -> int:
        """Place in the queue, 1 is next; 0: not waiting."""
        names = [job.record.id for job in self._queue]
        return names.index(name) + 1 if name in names else 0

    async def recover(self) -> None:
        """After a start: what waited waits again, what ran has failed."""
        for record in list(self._service.journal.all("video")):
            status = record.document["status"]
            if status == "queued":
                self._enqueue(Job(record))
            elif status == "in_progress":
                await self._fail(Job(record), "server_restarted")

    # ------------------------------------------------------------------------------- accepting

    async def create(self, asked: CreateVideo, owner: str, **more: Any) -> Record:
        """Accept a job; it is durable when this returns.

        Raises:
            ApiError: for what cannot be made, 429 ``queue_full``, 507.
        """
        service = self._service
        worker = self._worker(asked.model)
        request, warnings = worker_request(asked, worker.info["size_multiple"])
        check_request(request, worker.info)
        check_memory(request, worker.info)
        for name in loras_of(asked):
            if name not in worker.info["loras"]:
                raise ApiError(400, "invalid_value", f"there is no lora {name!r}", "loras")
        self.check_room(owner)
        media = await service.uploads.reference(asked.input_reference, owner)
        defaults = worker.info["defaults"]
        fps = request.get("fps") or defaults["fps"]
        frames = length_of(asked.seconds, asked.num_frames, fps) or defaults["num_frames"]
        request["num_frames"] = frames
        request.pop("seconds", None)
        width = request.get("width") or defaults["width"]
        height = request.get("height") or defaults["height"]
        document = {
            "worker_request": request,
            "media": media,
            "loras": loras_of(asked),
            "model": worker.model,
            "prompt": _shown(asked.prompt),
            "size": f"{width}x{height}",
            "fps": fps,
            "num_frames": frames,
            "warnings": warnings,
            **more,
        }
        return await self._accept(document, owner)

    async def remix(self, old: Record, prompt: str, seed: int | None, owner: str) -> Record:
        """The same request with another prompt, and the same noise unless a seed is given."""
        self.check_room(owner)
        document = {
            key: old.document[key]
            for key in ("media", "loras", "model", "size", "fps", "num_frames")
        }
        request = dict(old.document["worker_request"]) | {"prompt": prompt}
        made = old.document.get("settings") or {}
        chosen = seed if seed is not None else made.get("seed", request.get("seed"))
        if chosen is not None:
            request["seed"] = chosen
        document |= {
            "worker_request": request,
            "prompt": prompt,
            "warnings": [],
            "remixed_from": old.id,
        }
        return await self._accept(document, owner)

    async def extend(self, old: Record, asked: ExtendVideo, owner: str) -> Record:
        """A job whose result is the finished video ``old`` and what follows it, bit for bit."""
        if old.document["status"] != "completed":
            raise ApiError(409, "video_not_ready", "the video is not complete yet", "video")
        self.check_room(owner)
        fps = old.document["fps"]
        add = length_of(asked.seconds, asked.num_frames, fps) or 4 * CHUNK_FRAMES
        document = {key: old.document[key] for key in ("loras", "model", "size", "fps")}
        document |= {
            "worker_request": old.document["worker_request"],
            "media": None,
            "prompt": asked.prompt or old.document["prompt"],
            "num_frames": old.document["num_frames"] + add,
            "warnings": [],
            "extends": {"id": old.id, "chunk": old.document["state_chunk"]},
            "new_prompt": asked.prompt,
        }
        if asked.seed is not None:
            document["warnings"].append("seed has no effect: the video goes on with its own noise")
        return await self._accept(document, owner)

    def check_room(self, owner: str) -> None:
        """Refuse a new job while the queue is full.

        Raises:
            ApiError: 429 ``queue_full``, 503, 507.
        """
        service, limits = self._service, self._service.config.limits
        service.check_accepting()
        own = sum(1 for job in self._active.values() if job.record.owner == owner)
        crowded = bool(service.config.keys) and own >= limits.per_key
        if len(self._queue) + len(self._sending) >= limits.queue or crowded:
            raise ApiError(
                429, "queue_full", "too many jobs wait already", headers={"Retry-After": "5"}
            )
        service.store.check_room()

    def model_info(self, model: str | None) -> dict[str, Any]:
        """What a model's worker said of it.

        Raises:
            ApiError: 400 for a model that is not here, 503 while it is being loaded.
        """
        return self._worker(model).info

    def _worker(self, model: str | None) -> WorkerProcess:
        workers = self._service.supervisor.of_model(model)
        known = next((worker for worker in workers if worker.info), None)
        if known is None:
            raise ApiError(503, "not_ready", "the model is still being loaded")
        return known

    async def _accept(self, document: dict[str, Any], owner: str) -> Record:
        record = Record(new_id("video"), "video", owner)
        record.document = {"status": "queued", "progress": 0, "error": None, **document}
        record.document["expires"] = time.time() + self._service.config.limits.ttl
        self._sending.add(record.id)
        try:
            await asyncio.to_thread(self._service.store.make, record.id)
            await self._service.journal.put(record)
        except OSError as error:
            log("job_not_accepted", detail=str(error))
            self._service.store.remove(record.id)
            raise ApiError(507, "insufficient_storage", "the job cannot be stored") from None
        finally:
            self._sending.discard(record.id)
        self._enqueue(Job(record))
        return record

    def _enqueue(self, job: Job) -> None:
        self._active[job.record.id] = job
        self._queue.append(job)
        self._count()

    def _count(self) -> None:
        metrics = self._service.metrics
        metrics.queue_depth.set(len(self._queue))
        metrics.jobs_active.set(len(self._active) - len(self._queue))
        self._service.supervisor.notify()

    # --------------------------------------------------------------------------------- finding

    def find(self, name: str, owner: str) -> Record:
        """The record of a job.

        Raises:
            ApiError: 404 ``video_not_found``.
        """
        record = self._service.journal.get(name, owner) if is_id(name, "video") else None
        if record is None:
            raise ApiError(404, "video_not_found", "there is no such video")
        return record

    async def cancel(self, record: Record) -> None:
        """End a job that waits or runs; a finished one stays as it is."""
        job = self._active.get(record.id)
        if job is None:
            return
        job.end("cancelled")
        if job in self._queue:
            self._queue.remove(job)
            await self._fail(job, "cancelled")
            return
        seen = job.version
        while self._active.get(record.id) is job:
            seen = await job.change(seen, 1.0)

    async def delete(self, record: Record) -> None:
        """End and forget a job with its files."""
        await self.cancel(record)
        await self._service.forget(record)

    # ---------------------------------------------------------------------------------- making

    async def work(self, worker: WorkerProcess) -> None:
        """Make jobs on ``worker``, one after the other, for ever."""
        while True:
            job = self._next(worker)
            if job is None:
                await self._service.supervisor.change(timeout=5.0)
                continue
            self._queue.remove(job)
            worker.job = job
            try:
                await self._run(job, worker)
            except Exception as error:
                log("job_failed", job=job.record.id, kind=type(error).__name__, detail=str(error))
                await self._fail(job, "internal_error")
            finally:
                worker.job = None
                self._count()

    def _next(self, worker: WorkerProcess) -> Job | None:
        """The oldest job of whoever was served longest ago."""
        if not worker.ready or self._service.draining:
            return None
        fitting = [job for job in self._queue if job.record.document["model"] == worker.model]
        if not fitting:
            return None
        job = min(fitting, key=lambda job: self._served.get(job.record.owner, 0.0))
        self._served[job.record.owner] = time.monotonic()
        return job

    def _done(self, job: Job, status: str, code: str) -> None:
        self._active.pop(job.record.id, None)
        self._service.metrics.jobs.labels(status, code).inc()
        log("job_done", job=job.record.id, status=status, code=code)
        job.changed()
        self._count()

    async def finish(self, grace: float) -> None:
        """Let running jobs finish within ``grace`` seconds; then they fail."""
        until = time.monotonic() + grace
        running = [job for job in self._active.values() if job not in self._queue]
        while time.monotonic() < until and any(j.record.id in self._active for j in running):
            await asyncio.sleep(0.05)
        left = [job for job in running if job.record.id in self._active]
        for job in left:
            job.end("server_shutdown")
        for job in left:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended(job), 2.0)

    async def _ended(self, job: Job) -> None:
        seen = job.version
        while job.record.id in self._active:
            seen = await job.change(seen, 0.5)


def _shown(prompt: str | list[tuple[int, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[0][1]
