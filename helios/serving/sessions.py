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
from helios.serving.line import Place
from helios.serving.logs import log
from helios.serving.protocol import SessionBranch, SessionResume, SessionStart
from helios.serving.recording import Recording
from helios.serving.requests import check_memory, loras_of, worker_request
from helios.serving.store import is_id, new_id
from helios.serving.supervisor import StreamHandle
from helios.serving.transport import Message

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["Session", "Sessions", "recorded_chunks", "state_name", "states_in"]

Queued: TypeAlias = Callable[[str, int, int], Awaitable[None]]

AUTOSAVE_SECONDS = 10.0
KEPT_STATES = 8
"""Newest borders that are written when a session is parked, and as many spread over the rest."""


def state_name(chunk: int) -> str:
    """File of the state at the beginning of ``chunk``."""
    return f"state-{chunk:07d}.safetensors"


def states_in(folder: Path) -> list[int]:
    """Chunks that the session in ``folder`` can go back to, rising."""
    return sorted(int(path.stem.removeprefix("state-")) for path in folder.glob("state-*"))


def recorded_chunks(folder: Path) -> list[dict[str, Any]]:
    """What was said of each chunk of a recording, without its place in the file."""
    try:
        recording = Recording.open(folder)
    except OSError:
        return []
    hidden = ("offset", "bytes")
    return [{k: v for k, v in noted.items() if k not in hidden} for noted in recording.notes()]


class Session:
    """A session that is on a worker.

    Attributes:
        settings: everything that was chosen.
        first_chunk: the first chunk this worker makes.
        over: why nothing more is made; none while it runs.
    """

    def __init__(
        self,
        service: Service,
        record: Record,
        stream: StreamHandle,
        recording: Recording,
        place: Place | None,
        ahead: int | None,
    ) -> None:
        self.id = record.id
        self.record_ = record
        self.stream = stream
        self.recording = recording
        self.place = place
        self.settings: dict[str, Any] = stream.info["settings"]
        self.warnings: list[str] = stream.info["warnings"]
        self.mime: str = stream.info["mime"]
        self.header = stream.header
        self.first_chunk: int = stream.info["chunk"]
        self.parent: str | None = record.document.get("parent")
        self.over: str | None = None
        self.kept = [self.first_chunk, self.first_chunk]
        self.sharing = 1
        self.last_chunk: Message | None = None
        self._service = service
        self._ahead = ahead
        self._autosave: asyncio.Task[None] | None = None
        self._began = self._saved = time.monotonic()

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._service.store.folder(self.id)

    async def next_event(self) -> tuple[Message, bytes]:
        """What the worker says next."""
        return await self.stream.events.get()

    def taken(self) -> None:
        """The client has the chunk; another may be made."""
        self.stream.taken()

    def played(self, chunk: int) -> None:
        """The client plays ``chunk`` now."""
        if self._ahead is not None:
            self.stream.tell("until", chunk=chunk + self._ahead)

    async def record(self, message: Message, body: bytes) -> None:
        """Write a chunk to disk, and once in a while the state after it."""
        self.kept, self.sharing = message["kept"], message["sharing"]
        self.last_chunk = message
        noted = {
            name: message[name]
            for name in ("chunk", "start_frame", "frames", "prompt", "timings", "thumbnail")
        }
        await asyncio.to_thread(self.recording.append, noted, body)
        now = time.monotonic()
        busy = self._autosave is not None and not self._autosave.done()
        if now - self._saved > AUTOSAVE_SECONDS and not busy:
            self._saved = now
            # A state is written after the chunk being made; the one at hand must not wait for it.
            self._autosave = asyncio.create_task(self._save_quietly())

    async def _save_quietly(self) -> None:
        with suppress(ApiError, OSError):
            await self._save_state(None, draft="autosave.safetensors")

    async def prompt(self, text: str, transition: int) -> Message:
        """Another prompt from the next chunk on."""
        answer = await self.stream.call("prompt", prompt=text, transition=transition)
        self._service.sessions.note_prompt(self.record_, answer["chunk"], text)
        return answer

    async def set_loras(self, loras: dict[str, float]) -> int:
        """Other adapters from the next chunk on."""
        answer = await self.stream.call("lora", loras=loras)
        self.record_.document["loras"] = loras
        return int(answer["chunk"])

    async def extend(self, add: int | None) -> tuple[int, int | None]:
        """Go on; the first chunk that is made, and the new length."""
        if add is None:
            answer = await self.stream.call("extend", num_frames=None)
        else:
            answer = await self.stream.call("extend", num_frames=None, add=add)
        self.over = None
        self._began = time.monotonic()
        self.settings["num_frames"] = answer["num_frames"]
        return int(answer["chunk"]), answer["num_frames"]

    async def stop(self) -> None:
        """No more chunks after the one being made."""
        await self.stream.call("stop")

    async def keep_time(self) -> None:
        """Stop at the end of the lifetime that the operator allows."""
        lifetime = self._service.config.limits.lifetime
        if lifetime and self.over is None and time.monotonic() - self._began > lifetime:
            self.over = "lifetime"
            await self.stop()

    async def save(self, chunk: int | None, name: str | None) -> int:
        """Keep a state; the chunk it lies before."""
        saved = await self._save_state(chunk)
        pinned = set(self.record_.document.get("pinned", ()))
        self.record_.document["pinned"] = sorted(pinned | {saved})
        if name is not None:
            self.record_.document["name"] = name
        await self._service.journal.put(self.record_)
        return saved

    async def keep_states(self) -> None:
        """Write the states that make the session resumable, newest first, and the record."""
        first, last = self.kept
        newest = list(range(last, max(first, last - KEPT_STATES) - 1, -1))
        rest = range(first, newest[-1])
        spread = list(rest[:: max(1, len(rest) // KEPT_STATES)])
        wanted = newest + [chunk for chunk in spread if chunk not in newest]
        for chunk in wanted:
            with suppress(ApiError):
                await self._save_state(chunk)
        keep = set(wanted) | set(self.record_.document.get("pinned", ()))
        for chunk in states_in(self.folder):
            if chunk not in keep:
                (self.folder / state_name(chunk)).unlink(missing_ok=True)
        await self.note()

    async def _save_state(self, chunk: int | None, draft: str = "draft.safetensors") -> int:
        path = self.folder / draft
        answer = await self.stream.call("save", path=str(path), chunk=chunk)
        saved = int(answer["chunk"])
        path.replace(self.folder / state_name(saved))
        return saved

    async def note(self) -> None:
        """Bring the record up to date."""
        document = self.record_.document
        document["settings"] = self.settings
        document["chunks"] = len(self.recording)
        document["frames"] = self.recording.frames
        document["updated"] = time.time()
        document["over"] = self.over
        await self._service.journal.put(self.record_)


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

    def note_prompt(self, record: Record, chunk: int, text: str) -> None:
        """Remember a live prompt for lists and exports."""
        prompts = [part for part in record.document["prompts"] if part[0] < chunk]
        record.document["prompts"] = [*prompts, [chunk, text]]


def _prompts(prompt: str | list[tuple[int, str]]) -> list[list[Any]]:
    return [[0, prompt]] if isinstance(prompt, str) else [list(part) for part in prompt]
