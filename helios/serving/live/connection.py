"""One live connection: wishes in, chunks out, whatever happens to either end.

Three tasks: one reads messages, one carries what the worker makes to disk and socket, one keeps
the clocks (places, health, limits). All of them speak through one ``LiveSocket``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from helios.serving import protocol
from helios.serving.errors import ApiError, from_validation
from helios.serving.live.sending import HangupError, LiveSocket, MessageRate
from helios.serving.live.session import Session, states_in
from helios.serving.logs import log
from helios.serving.strict_json import parse_object
from helios.serving.worker.supervisor import lost_worker
from helios.serving.worker.transport import Message

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["LiveConnection"]

HEALTH_SECONDS = 2.0
REMEMBERED_EVENTS = 1000


class LiveConnection:
    """A WebSocket that was accepted.

    Args:
        service: everything behind it.
        socket: accepted.
        owner: name of the key.
    """

    def __init__(self, service: Service, socket: WebSocket, owner: str) -> None:
        self._service = service
        self._receive = socket.receive
        self._socket = LiveSocket(socket, service.config.limits.stall, service.metrics)
        self._owner = owner
        self._limits = service.config.limits
        self._session: Session | None = None
        self._lost: ApiError | None = None
        """Why the last session is gone, until there is another."""
        self._starting: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._place = 0
        self._streams = 0
        self._heard = time.monotonic()
        self._events: deque[str] = deque(maxlen=REMEMBERED_EVENTS)
        self._rate = MessageRate()

    async def run(self) -> None:
        """Serve until one end leaves."""
        clock = asyncio.create_task(self._clock())
        reader = asyncio.create_task(self._read())
        try:
            ended = self._socket.ended
            ends: list[asyncio.Future[Any]] = [reader, ended]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await self._socket.close(ended.result())
        finally:
            tasks = [task for task in (clock, reader, self._starting) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._leave()

    # -------------------------------------------------------------------------------- inwards

    async def _read(self) -> None:
        with suppress(WebSocketDisconnect):
            while True:
                event = await self._receive()
                if event["type"] == "websocket.disconnect":
                    return
                self._heard = time.monotonic()
                if not self._may_talk():
                    await self._socket.refuse(
                        ApiError(429, "rate_limited", "too many messages; slow down"), None
                    )
                    continue
                if event.get("text") is None:
                    await self._socket.refuse(
                        ApiError(400, "binary_not_allowed", "send text messages only"), None
                    )
                    continue
                await self._obey(event["text"])

    def _may_talk(self) -> bool:
        try:
            return self._rate.take()
        except HangupError as error:
            self._socket.end(error.code, str(error))
            return False

    async def _obey(self, text: str) -> None:
        event_id = None
        try:
            value = self._socket.understood(parse_object(text))
            event_id = value.get("event_id")
            event_id = event_id if isinstance(event_id, str) and len(event_id) <= 64 else None
            if event_id is not None:
                if event_id in self._events:
                    raise ApiError(400, "duplicate_event", "this event_id was used", "event_id")
                self._events.append(event_id)
            await self._do(self._parsed(value))
        except ApiError as error:
            await self._socket.refuse(error, event_id)
        except OSError as error:
            log("live_storage", kind=type(error).__name__, detail=str(error))
            refusal = ApiError(507, "insufficient_storage", "the server's disk refuses")
            await self._socket.refuse(refusal, event_id)

    @staticmethod
    def _parsed(value: dict[str, Any]) -> protocol.ClientMessage:
        try:
            return protocol.client_message(value)
        except ValidationError as error:
            known = isinstance(value.get("type"), str)
            raise from_validation(error, skip=1 if known else 0) from None

    async def _do(self, message: protocol.ClientMessage) -> None:
        match message:
            case protocol.SessionPing():
                await self._socket.say("session.pong", event_id=message.event_id)
            case protocol.SessionStart() | protocol.SessionResume():
                await self._change(message)
            case protocol.SessionPrompt():
                await self._prompt(message)
            case protocol.SessionLora():
                loras = {lora.name: lora.scale for lora in message.loras}
                chunk = await self._running.set_loras(loras)
                shown = [lora.model_dump() for lora in message.loras]
                await self._socket.say("session.loras", loras=shown, chunk=chunk)
            case protocol.SessionPlayed():
                self._running.played(message.chunk)
            case protocol.SessionBranch():
                await self._branch(message)
            case protocol.SessionExtend():
                await self._extend(message)
            case protocol.SessionSave():
                session = self._running
                chunk = await session.save(message.chunk, message.name)
                await self._socket.say(
                    "session.saved", session=session.id, chunk=chunk, name=message.name
                )
            case protocol.SessionStop():
                if self._starting is not None and self._session is None:
                    self._starting.cancel()
                    await self._socket.say("session.done", session=None, reason="stopped", chunks=0)
                else:
                    await self._running.stop()

    @property
    def _running(self) -> Session:
        if self._session is None:
            if self._lost is not None:
                raise self._lost
            raise ApiError(409, "no_session", "there is no session yet; send session.start")
        return self._session

    async def _change(self, message: protocol.SessionStart | protocol.SessionResume) -> None:
        """Start or take up a session, in a task of its own: it may wait in line."""
        if self._starting is not None and not self._starting.done():
            raise ApiError(409, "session_active", "a session is being started")
        await self._leave()
        self._starting = asyncio.create_task(self._begin(message))

    async def _begin(self, message: protocol.SessionStart | protocol.SessionResume) -> None:
        asked = time.monotonic()
        try:
            if isinstance(message, protocol.SessionStart):
                session = await self._service.sessions.start(message, self._owner, self._queued)
                session.asked = asked
            else:
                session = await self._service.sessions.resume(message, self._owner, self._queued)
        except ApiError as error:
            await self._socket.refuse(error, message.event_id)
            return
        except OSError as error:
            log("live_storage", kind=type(error).__name__, detail=str(error))
            storage = ApiError(507, "insufficient_storage", "the server's disk refuses")
            await self._socket.refuse(storage, message.event_id)
            return
        finally:
            self._place = 0
        have = message.have if isinstance(message, protocol.SessionResume) else 0
        with suppress(WebSocketDisconnect, RuntimeError):  # the reader notices too
            await self._show(session, replay_from=have)

    async def _queued(self, session: str, place: int, waiting: int) -> None:
        self._place = place
        await self._socket.say("session.queued", session=session, place=place, waiting=waiting)

    async def _show(self, session: Session, *, replay_from: int | None = None) -> None:
        """Make ``session`` the one of this connection and carry what it makes."""
        self._session, self._lost = session, None
        await self._socket.say(
            "session.created",
            session=session.id,
            settings=session.settings,
            warnings=session.warnings,
            chunk_frames=33,
            parent=session.parent,
            kept=states_in(session.folder),
        )
        first = session.first_chunk if replay_from is None else replay_from
        await self._begin_stream(session, min(first, session.first_chunk))
        self._pump = asyncio.create_task(self._carry(session, replay_from))

    async def _begin_stream(self, session: Session, first: int) -> None:
        self._streams += 1
        settings = session.settings
        await self._socket.say(
            "video.start",
            session.header,
            session=session.id,
            stream=self._streams,
            mime=session.mime,
            width=settings["width"],
            height=settings["height"],
            fps=settings["fps"],
            first_chunk=first,
        )

    async def _prompt(self, message: protocol.SessionPrompt) -> None:
        answer = await self._running.prompt(message)
        if answer["superseded"] is not None:
            await self._socket.say("prompt.superseded", prompt=answer["superseded"])
        await self._socket.say(
            "prompt.queued",
            prompt=message.prompt,
            chunk=answer["chunk"],
            event_id=message.event_id,
            warnings=answer["warnings"],
        )

    async def _branch(self, message: protocol.SessionBranch) -> None:
        old = self._running
        session = await self._service.sessions.branch(old, message)
        await self._leave()
        await self._socket.say(
            "session.branched",
            session=session.id,
            parent=old.id,
            chunk=message.chunk,
            seed=session.settings.get("branch_seed"),
        )
        await self._show(session)

    async def _extend(self, message: protocol.SessionExtend) -> None:
        session = self._running
        add = message.num_frames
        if message.seconds is not None:
            add = max(1, round(message.seconds * session.settings["fps"]))
        chunk, length = await session.extend(add)
        await self._socket.say(
            "session.extended", session=session.id, chunk=chunk, num_frames=length
        )
        if chunk < len(session.recording):
            await asyncio.to_thread(session.recording.cut, chunk)
            await self._begin_stream(session, chunk)

    # ------------------------------------------------------------------------------- outwards

    async def _carry(self, session: Session, replay_from: int | None) -> None:
        """What the worker makes, to disk and then to the client."""
        try:
            if replay_from is not None:
                for index in range(replay_from, len(session.recording)):
                    noted = await asyncio.to_thread(session.recording.noted, index)
                    fragment = await asyncio.to_thread(session.recording.read, index)
                    await self._send_chunk(session, noted, fragment, replayed=True)
            if session.over is not None:
                await self._done(session, session.over)
            while True:
                message, body = await session.next_event()
                event = message["event"]
                if event == "chunk":
                    await self._chunk(session, message, body)
                elif event == "ended":
                    await self._done(session, session.over or message["reason"])
                elif event == "failed":
                    await self._failed(session, message)
                    return
        except (WebSocketDisconnect, RuntimeError):
            return  # the reader notices too
        except OSError as error:
            log("live_storage", session=session.id, detail=str(error))
            await self._socket.refuse(
                ApiError(507, "insufficient_storage", "the disk is full"), None
            )
            await session.stop()

    async def _chunk(self, session: Session, message: Message, body: bytes) -> None:
        await session.record(message, body)
        if message["landed"] is not None:
            await self._socket.say("prompt.applied", **message["landed"])
        await self._send_chunk(session, message, body, replayed=False)
        session.taken()

    async def _send_chunk(
        self, session: Session, message: Message, body: bytes, *, replayed: bool
    ) -> None:
        fps, timings = session.settings["fps"], message["timings"]
        await self._socket.say(
            "video.chunk",
            body,
            session=session.id,
            stream=self._streams,
            chunk=message["chunk"],
            start_frame=message["start_frame"],
            frames=message["frames"],
            prompt=message["prompt"],
            replayed=replayed,
            timings=timings,
            real_time=round(message["frames"] / fps / max(timings["made"], 1e-6), 3),
            thumbnail=message["thumbnail"],
        )

    async def _done(self, session: Session, reason: str) -> None:
        session.over = reason
        await session.keep_states()
        await self._socket.say(
            "session.done",
            session=session.id,
            reason=reason,
            chunks=len(session.recording),
            frames=session.recording.frames,
        )

    async def _failed(self, session: Session, message: Message) -> None:
        """The worker lost the session; it goes on from its last state when asked."""
        error = lost_worker(message["code"], message.get("message"))
        self._session, self._lost = None, error
        if error.code == "non_finite_output":
            self._service.metrics.nonfinite.inc()
        await self._socket.refuse(error, None)
        await self._service.sessions.lose(session, message["code"])
        await self._socket.say(
            "session.done",
            session=session.id,
            reason="worker",
            chunks=len(session.recording),
            frames=session.recording.frames,
        )

    # --------------------------------------------------------------------------------- clocks

    async def _clock(self) -> None:
        began = time.monotonic()
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await asyncio.sleep(HEALTH_SECONDS)
                now = time.monotonic()
                idle = self._session is None or self._session.over is not None
                if self._session is None and self._starting is None:
                    if now - began > self._limits.start:
                        self._socket.end("idle", "no session was started")
                elif idle and now - self._heard > self._limits.idle:
                    self._socket.end("idle", "nothing was asked for too long")
                session = self._session
                if session is not None:
                    await session.keep_time()
                await self._socket.say("health", **self._service.health(session, self._place))

    async def drain(self, seconds: float) -> None:
        """Say that the server stops, and end."""
        await self._socket.drain(seconds)

    async def _leave(self) -> None:
        """Park the session; the place on the worker is free when this returns."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
            self._pump = None
        session, self._session = self._session, None
        if session is not None:
            await self._service.sessions.park(session)
