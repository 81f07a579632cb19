"""Making one file job: chunks to disk, then a finished video or the reason why not.

The worker only sends fragments; this process writes them, so a worker that was replaced can
publish nothing (specification "reliability", 3.4 and 3.7).
"""

from __future__ import annotations

import asyncio
import base64
import errno
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from helios.files import sync
from helios.geometry import CHUNK_FRAMES, chunk_count
from helios.media import plain_mp4
from helios.serving.errors import ApiError, job_error
from helios.serving.jobs.job import Job
from helios.serving.live.recording import Recording
from helios.serving.live.session import state_name
from helios.serving.logs import log
from helios.serving.worker.supervisor import StreamHandle, WorkerProcess
from helios.serving.worker.transport import Message

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["Making"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Making:
    """The part of ``Jobs`` that takes a job from its worker to its file."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def _count(self) -> None:
        """Bring the figures up to date."""
        raise RuntimeError("the queue counts")

    def _done(self, job: Job, status: str, code: str) -> None:
        raise RuntimeError("the queue knows what is done")

    async def _run(self, job: Job, worker: WorkerProcess) -> None:
        record = job.record
        record.document["status"] = "in_progress"
        self._count()
        await self._service.journal.put(record)
        job.changed()
        try:
            job.stream = await self._open(job, worker)
            folder = self._service.store.folder(record.id)
            job.recording = await asyncio.to_thread(Recording.begin, folder, job.stream.header)
            record.document["settings"] = job.stream.info["settings"]
            record.document["warnings"] += job.stream.info["warnings"]
            code = await self._consume(job)
            if code is None:
                await self._finish(job, folder)
        except ApiError as error:
            code = error.code
            log("job_refused", job=record.id, code=code, detail=error.message)
        except OSError as error:
            log("job_storage", job=record.id, detail=str(error))
            code = "insufficient_storage" if error.errno in FULL else "internal_error"
        finally:
            if job.stream is not None:
                job.stream.close()
        if code is not None:
            await self._fail(job, code)

    async def _open(self, job: Job, worker: WorkerProcess) -> StreamHandle:
        document = job.record.document
        begun = document.get("extends")
        if begun is None:
            return await worker.open(
                "open",
                job.record.id,
                request=document["worker_request"],
                media=document["media"],
                loras=document["loras"],
                until=None,
            )
        old = self._service.journal.get(begun["id"], job.record.owner)
        if old is None:
            raise ApiError(404, "video_not_found", "the video to extend is gone")
        path = self._service.store.folder(old.id) / state_name(begun["chunk"])
        return await worker.open(
            "resume",
            job.record.id,
            path=str(path),
            num_frames=document["num_frames"],
            endless=False,
            settings=old.document["settings"],
            loras=document["loras"],
            until=None,
            prompt=document["new_prompt"],
        )

    async def _consume(self, job: Job) -> str | None:
        """Take chunks until the end; the code of a failure, none if it is complete."""
        assert job.stream is not None
        assert job.recording is not None
        ending = asyncio.create_task(job.stopped.wait())
        document = job.record.document
        chunks = chunk_count(document["num_frames"])
        try:
            while True:
                event = asyncio.create_task(job.stream.events.get())
                await asyncio.wait({event, ending}, return_when=asyncio.FIRST_COMPLETED)
                if job.ending is not None:
                    event.cancel()
                    return job.ending
                message, body = event.result()
                if message["event"] == "chunk":
                    await asyncio.to_thread(self._store, job.recording, message, body)
                    job.stream.taken()
                    document["chunks"] = message["chunk"] + 1
                    document["progress"] = min(99, 100 * (message["chunk"] + 1) // chunks)
                    job.progress.append(
                        {
                            "id": job.record.id,
                            "chunk": message["chunk"],
                            "frames": message["start_frame"] + message["frames"],
                            "progress": document["progress"],
                            "timings": message["timings"],
                            "prompt": message["prompt"],
                        }
                    )
                    if message["chunk"] == 0:
                        taken = time.monotonic() - job.accepted
                        self._service.metrics.first.observe(taken)
                    job.changed()
                elif message["event"] == "ended":
                    return None
                elif message["event"] == "failed":
                    return str(message["code"])
        finally:
            ending.cancel()

    def _store(self, recording: Recording, message: Message, body: bytes) -> None:
        self._service.check_disk()
        names = ("chunk", "start_frame", "frames", "prompt", "timings", "thumbnail")
        recording.append({name: message[name] for name in names}, body)

    async def _finish(self, job: Job, folder: Path) -> None:
        """Give the video its name; the job is complete when the journal says so."""
        assert job.stream is not None
        assert job.recording is not None
        document = job.record.document
        # The last border before which every frame is shown: an extension goes on from there.
        border = document["num_frames"] // CHUNK_FRAMES
        saved = folder / state_name(border)
        await job.stream.call("save", path=str(saved), chunk=border)
        sources: list[tuple[Path, int | None]] = [(job.recording.path, None)]
        begun = document.get("extends")
        if begun is not None:
            old = self._service.store.folder(begun["id"]) / "video.mp4"
            sources.insert(0, (old, begun["chunk"] * CHUNK_FRAMES))
        await asyncio.to_thread(self._publish, job.recording, folder, sources)
        if job.ending is not None:
            raise ApiError(409, job.ending, "ended meanwhile")
        await self._service.journal.put(
            job.record,
            status="completed",
            progress=100,
            completed=time.time(),
            state_chunk=border,
            frames=document["num_frames"],
        )
        self._done(job, "completed", "")
        await asyncio.to_thread(_clear, job.recording)

    def _publish(
        self, recording: Recording, folder: Path, sources: list[tuple[Path, int | None]]
    ) -> None:
        self._service.check_disk()
        shown = recording.noted(0)["thumbnail"].partition(",")[2]
        (folder / "thumbnail.jpg").write_bytes(base64.b64decode(shown))
        plain_mp4(sources, folder / "video.mp4")
        sync(folder)

    async def _fail(self, job: Job, code: str) -> None:
        """Nothing of a failed job stays but its record."""
        record = job.record
        over = {"status": "failed", "error": job_error(code), "completed": time.time()}
        folder = self._service.store.folder(record.id)
        await asyncio.to_thread(_empty, folder)
        if self._service.journal.get(record.id) is not None:
            try:
                await self._service.journal.put(record, **over)
            except OSError as error:
                log("job_record_not_written", job=record.id, detail=str(error))
        # Whoever waits for it must not wait on because a disk is full.
        record.document |= over
        if code == "non_finite_output":
            self._service.metrics.nonfinite.inc()
        self._done(job, "failed", code)


def _clear(recording: Recording) -> None:
    for path in (recording.path, recording.index):
        path.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
