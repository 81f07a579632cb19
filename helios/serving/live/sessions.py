"""Sessions over their whole life: started, parked on disk, taken up, branched, exported.

A session is a stream on a worker plus a folder: its recording, and states at chunk borders from
which it goes on bit for bit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from helios.geometry import CHUNK_FRAMES
from helios.media import plain_mp4
from helios.serving.errors import ApiError
from helios.serving.journal import Record
from helios.serving.live.line import Place
from helios.serving.live.recording import Recording
from helios.serving.live.session import Session, state_name, states_in
from helios.serving.logs import log
from helios.serving.protocol import SessionBranch, SessionResume, SessionStart
from helios.serving.requests import check_memory, loras_of, worker_request
from helios.serving.store import is_id, new_id
from helios.serving.worker.supervisor import StreamHandle

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["Sessions", "recorded_chunks"]

Queued: TypeAlias = Callable[[str, int, int], Awaitable[None]]


def recorded_chunks(folder: Path) -> list[dict[str, Any]]:
    """What was said of each chunk of a recording, without its place in the file."""
    try:
        recording = Recording.open(folder)
    except OSError:
        return []
    hidden = ("offset", "bytes")
    return [{k: v for k, v in noted.items() if k not in hidden} for noted in recording.notes()]


class Sessions:
    """All sessions of a server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.live: dict[str, Session] = {}
        self._parking: dict[str, asyncio.Event] = {}

    async def start(self, asked: SessionStart, owner: str, queued: Queued) -> Session:
        """A new session on a worker, after its turn in the line."""
        service = self._service
        service.check_accepting()
        service.store.check_room()
        workers = service.supervisor.of_model(asked.model)
        name = new_id("session")
        place = await service.line.enter(workers, lambda *now: queued(name, *now))
        try:
            worker = place.worker
            request, warnings = worker_request(asked, worker.info["size_multiple"])
            check_memory(request, worker.info)
            media = await service.uploads.reference(asked.input_reference, owner)
            record = Record(name, "session", owner)
            record.document = {
                "model": worker.model,
                "loras": loras_of(asked),
                "prompts": _prompts(asked.prompt),
                "reference": None if media is None else media["name"],
                "expires": time.time() + service.config.limits.ttl,
            }
            stream = await worker.open(
                "open",
                name,
                request=request,
                media=media,
                loras=loras_of(asked),
                until=asked.ahead,
            )
            stream.info["warnings"] = warnings + stream.info["warnings"]
            return await self._enter(record, stream, place, asked.ahead)
        except BaseException:
            place.leave()
            raise

    async def _enter(
        self, record: Record, stream: StreamHandle, place: Place | None, ahead: int | None
    ) -> Session:
        """A new folder for a new stream."""
        try:
            folder = self._service.store.make(record.id)
            recording = await asyncio.to_thread(Recording.begin, folder, stream.header)
            session = Session(self._service, record, stream, recording, place, ahead)
            # Whoever knows of the session can resume it, whenever its worker dies.
            await session.autosave()
            await session.note()
        except BaseException:
            stream.close()
            self._service.store.remove(record.id)
            raise
        self.live[record.id] = session
        return session

    async def branch(self, old: Session, asked: SessionBranch) -> Session:
        """A session that shares the beginning of ``old``, on the same worker and place."""
        self._service.store.check_room()
        name = new_id("session")
        change = {
            "prompt": asked.prompt,
            "transition": asked.transition_chunks,
            "seed": asked.seed,
        }
        worker = old.stream.worker
        if asked.chunk < old.kept[0] and asked.chunk in states_in(old.folder):
            # Made in an earlier life of the session: only the disk knows this border.
            stream = await worker.open(
                "resume",
                name,
                path=str(old.folder / state_name(asked.chunk)),
                num_frames=old.settings["num_frames"],
                endless=old.settings["num_frames"] is None,
                settings=old.settings,
                loras=old.record_.document["loras"],
                until=None if old._ahead is None else asked.chunk + old._ahead,
                **change,
            )
        else:
            stream = await worker.open(
                "branch", name, stream=old.stream.name, chunk=asked.chunk, **change
            )
        record = Record(name, "session", old.record_.owner)
        prompts = [part for part in old.record_.document["prompts"] if part[0] < asked.chunk]
        if asked.prompt is not None:
            prompts.append([asked.chunk, asked.prompt])
        elif asked.seed is not None or not prompts:
            prompts = old.record_.document["prompts"]
        record.document = {
            **{key: old.record_.document[key] for key in ("model", "loras", "reference")},
            "prompts": prompts,
            "parent": old.id,
            "branched_at": asked.chunk,
            "expires": time.time() + self._service.config.limits.ttl,
        }
        place, old.place = old.place, None
        try:
            session = await self._enter(record, stream, place, old._ahead)
            session.recording = await asyncio.to_thread(
                old.recording.copied, session.folder, asked.chunk, stream.header
            )
        except BaseException:
            old.place = place
            raise
        session.kept = [min(old.kept[0], asked.chunk), asked.chunk]
        return session

    async def resume(self, asked: SessionResume, owner: str, queued: Queued) -> Session:
        """A parked session on a worker again."""
        service = self._service
        service.check_accepting()
        record = self.find(asked.session, owner)
        if asked.session in self.live:
            raise ApiError(409, "session_active", "the session is on another connection")
        if asked.session in self._parking:
            # Its states are written when the chunk being made is finished.
            await self._parking[asked.session].wait()
        document = record.document
        workers = service.supervisor.of_model(document["model"])
        place = await service.line.enter(workers, lambda *now: queued(record.id, *now))
        try:
            folder = service.store.folder(record.id)
            recording = await asyncio.to_thread(Recording.open, folder)
            chunk = self._border(folder, recording, asked)
            settings = document["settings"]
            stream = await place.worker.open(
                "resume",
                record.id,
                path=str(folder / state_name(chunk)),
                num_frames=asked.num_frames,
                endless=False,
                settings=settings,
                loras=document["loras"],
                until=None if asked.ahead is None else asked.have + asked.ahead,
                stopped=document.get("over") == "stopped" and asked.chunk is None,
            )
            await asyncio.to_thread(recording.cut, chunk)
            session = Session(service, record, stream, recording, place, asked.ahead)
        except BaseException:
            place.leave()
            raise
        self.live[record.id] = session
        return session

    @staticmethod
    def _border(folder: Path, recording: Recording, asked: SessionResume) -> int:
        """The state to go on from: the one asked for, or the newest that the recording reaches."""
        states = [chunk for chunk in states_in(folder) if chunk <= len(recording)]
        if recording.frames % CHUNK_FRAMES:
            # The last chunk was cut: it is made again, so that the session can be extended.
            states = [chunk for chunk in states if chunk < len(recording)]
        if asked.chunk is not None:
            if asked.chunk not in states:
                shown = ", ".join(map(str, states)) or "none"
                raise ApiError(
                    400, "chunk_not_kept", f"chunk must be one of those kept: {shown}", "chunk"
                )
            return asked.chunk
        if not states:
            raise ApiError(409, "chunk_not_kept", "no state of this session is left")
        return states[-1]

    def find(self, name: str, owner: str) -> Record:
        """The record of a session.

        Raises:
            ApiError: 404 ``session_not_found``.
        """
        record = self._service.journal.get(name, owner) if is_id(name, "session") else None
        if record is None:
            raise ApiError(404, "session_not_found", "there is no such session")
        return record

    async def playable(self, record: Record) -> tuple[Path, int]:
        """The recording as a file to play, and how much of it counts.

        A session that is not live gets a file with an index in front, made once.

        Raises:
            ApiError: 409 ``video_not_ready`` if nothing was recorded.
        """
        folder = self._service.store.folder(record.id)
        live = self.live.get(record.id)
        if live is not None:
            recording = live.recording
        else:
            try:
                recording = await asyncio.to_thread(Recording.open, folder)
            except OSError:
                raise ApiError(404, "content_not_found", "the recording is gone") from None
        if not len(recording):
            raise ApiError(409, "video_not_ready", "nothing was recorded yet")
        if live is not None:
            return recording.path, recording.size
        plain = folder / f"plain-{recording.size}.mp4"
        if not plain.exists():
            for old in folder.glob("plain-*.mp4"):
                old.unlink(missing_ok=True)
            try:
                await asyncio.to_thread(plain_mp4, [(recording.path, None)], plain)
            except (OSError, ValueError):
                return recording.path, recording.size
        return plain, plain.stat().st_size

    async def park(self, session: Session) -> None:
        """Write its states and free its place."""
        if self.live.pop(session.id, None) is None:
            return
        parked = self._parking[session.id] = asyncio.Event()
        # No further chunk: each state would have to wait for one.
        session.stream.tell("until", chunk=-1)
        try:
            with suppress(ApiError):
                if session.over is None or session.last_chunk is None:
                    await session.keep_states()
                else:
                    await session.note()
        except OSError as error:
            log("session_not_parked", session=session.id, detail=str(error))
        finally:
            session.stream.close()
            if session.place is not None:
                session.place.leave()
            del self._parking[session.id]
            parked.set()

    async def lose(self, session: Session, code: str) -> None:
        """Its worker is gone; the last state on disk is where it can go on."""
        self.live.pop(session.id, None)
        session.stream.close()
        if session.place is not None:
            session.place.leave()
        log("session_lost", session=session.id, code=code)
        with suppress(OSError):
            await session.note()

    def note_prompt(self, record: Record, soonest: int, chunk: int, text: str) -> None:
        """Remember a live prompt for lists and exports; nothing else comes from ``soonest`` on."""
        prompts = [part for part in record.document["prompts"] if part[0] < max(1, soonest)]
        prompts = prompts if chunk else []
        record.document["prompts"] = [*prompts, [chunk, text]]


def _prompts(prompt: str | list[tuple[int, str]]) -> list[list[Any]]:
    return [[0, prompt]] if isinstance(prompt, str) else [list(part) for part in prompt]
