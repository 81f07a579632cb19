"""One session that is on a worker: a stream, its recording, and states to go on from.

States lie in the folder of the session, one at each chunk border that was kept; from any of them
it goes on bit for bit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios.serving.errors import ApiError
from helios.serving.journal import Record
from helios.serving.live.line import Place
from helios.serving.live.recording import Recording
from helios.serving.protocol import SessionPrompt
from helios.serving.worker.supervisor import StreamHandle
from helios.serving.worker.transport import Message

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["Session", "state_name", "states_in"]

AUTOSAVE_SECONDS = 10.0
"""Between two states that are written while it runs, the first two apart."""
KEPT_STATES = 8
"""Newest borders that are written when a session is parked, and as many spread over the rest.

Also how many of those that are written while it runs stay.
"""


def state_name(chunk: int) -> str:
    """File of the state at the beginning of ``chunk``."""
    return f"state-{chunk:07d}.safetensors"


def states_in(folder: Path) -> list[int]:
    """Chunks that the session in ``folder`` can go back to, rising."""
    return sorted(int(path.stem.removeprefix("state-")) for path in folder.glob("state-*"))


class Session:
    """A session that is on a worker.

    Attributes:
        settings: everything that was chosen.
        first_chunk: the first chunk this worker makes.
        over: why nothing more is made; none while it runs.
        asked: when its start was asked for, until its first chunk is there.
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
        self.asked: float | None = None
        self._prompted: float | None = None
        self._service = service
        self._ahead = ahead
        self._autosave: asyncio.Task[None] | None = None
        self._autosaved: deque[int] = deque()
        self._began = time.monotonic()
        self._saved = -math.inf
        self._unsaved = False

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
        """Write a chunk to disk, and the state after the first and once in a while."""
        self.kept, self.sharing = message["kept"], message["sharing"]
        self.last_chunk = message
        noted = {
            name: message[name]
            for name in ("chunk", "start_frame", "frames", "prompt", "timings", "thumbnail")
        }
        await asyncio.to_thread(self.recording.append, noted, body)
        self._measure(message)
        if time.monotonic() - self._saved > AUTOSAVE_SECONDS:
            self._save_soon()

    def _measure(self, message: Message) -> None:
        """How long a wish took to be seen."""
        metrics, now = self._service.metrics, time.monotonic()
        if self.asked is not None:
            metrics.first.observe(now - self.asked)
            self.asked = None
        if message["landed"] is not None and self._prompted is not None:
            metrics.landing.observe(now - self._prompted)
            self._prompted = None

    def _save_soon(self) -> None:
        """Let a state be written between two steps of the chunk being made; nothing waits."""
        self._saved, self._unsaved = time.monotonic(), True
        if self._autosave is None or self._autosave.done():
            self._autosave = asyncio.create_task(self._autosave_all())

    async def _autosave_all(self) -> None:
        """Until nothing is newer than what was written."""
        while self._unsaved:
            self._unsaved = False
            await self.autosave()

    async def autosave(self) -> None:
        """Write the newest state, to go on from if the worker dies."""
        with suppress(ApiError, OSError):
            self._autosaved.append(await self._save_state(None, draft="autosave.safetensors"))
            if len(self._autosaved) > KEPT_STATES:
                old = self._autosaved.popleft()
                if old not in self.record_.document.get("pinned", ()):
                    (self.folder / state_name(old)).unlink(missing_ok=True)

    async def prompt(self, asked: SessionPrompt) -> Message:
        """Another prompt, from the next chunk on or a later one."""
        now = time.monotonic()
        answer = await self.stream.call(
            "prompt",
            prompt=asked.prompt,
            transition=asked.transition_chunks,
            chunk=asked.chunk,
        )
        self._service.sessions.note_prompt(
            self.record_, answer["soonest"], answer["chunk"], asked.prompt
        )
        self._prompted = now
        # What was promised is kept although the worker may die: it is part of the state.
        self._save_soon()
        await self._remember()
        return answer

    async def set_loras(self, loras: dict[str, float]) -> int:
        """Other adapters from the next chunk on."""
        answer = await self.stream.call("lora", loras=loras)
        self.record_.document["loras"] = loras
        await self._remember()
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
        await self._remember()
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
        self._autosaved.clear()
        await self.note()

    async def _save_state(self, chunk: int | None, draft: str = "draft.safetensors") -> int:
        path = self.folder / draft
        answer = await self.stream.call("save", path=str(path), chunk=chunk)
        saved = int(answer["chunk"])
        path.replace(self.folder / state_name(saved))
        return saved

    async def _remember(self) -> None:
        """A change that was made outlives this process too; a full disk does not undo it."""
        with suppress(OSError):
            await self.note()

    async def note(self) -> None:
        """Bring the record up to date."""
        await self._service.journal.put(
            self.record_,
            settings=self.settings,
            chunks=len(self.recording),
            frames=self.recording.frames,
            updated=time.time(),
            over=self.over,
        )
