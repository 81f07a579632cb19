"""One live connection: wishes in, chunks out, whatever happens to either end.

Three tasks: one reads messages, one carries what the worker makes to disk and socket, one keeps
the clocks (places, health, limits). Every pair of text and binary message goes out under one lock.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from helios.serving import protocol
from helios.serving.errors import ApiError, from_validation
from helios.serving.logs import log
from helios.serving.session import Session, states_in
from helios.serving.strict_json import parse_object
from helios.serving.transport import Message

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["LiveConnection"]

RATE, BURST, MOST_REFUSED = 10.0, 20.0, 100
HEALTH_SECONDS = 2.0
REMEMBERED_EVENTS = 1000
CLOSE_CODES = {"slow_consumer": 1008, "idle": 1008, "rate_limited": 1008, "draining": 1001}


class HangupError(Exception):
    """The connection ends now, with a code of the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LiveConnection:
    """A WebSocket that was accepted.

    Args:
        service: everything behind it.
        socket: accepted.
        owner: name of the key.
    """

    def __init__(self, service: Service, socket: WebSocket, owner: str) -> None:
        self._service = service
        self._socket = socket
        self._owner = owner
        self._limits = service.config.limits
        self._session: Session | None = None
        self._starting: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._place = 0
        self._streams = 0
        self._sending = asyncio.Lock()
        self._heard = time.monotonic()
        self._events: deque[str] = deque(maxlen=REMEMBERED_EVENTS)
        self._tokens, self._refilled, self._refused = BURST, self._heard, 0
        self._hangup: asyncio.Future[HangupError] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until one end leaves."""
        clock = asyncio.create_task(self._clock())
        reader = asyncio.create_task(self._read())
        try:
            ends: list[asyncio.Future[Any]] = [reader, self._hangup]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._hangup.done():
                await self._close(self._hangup.result())
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
                event = await self._socket.receive()
                if event["type"] == "websocket.disconnect":
                    return
                self._heard = time.monotonic()
                if self._too_fast():
                    await self._refuse(
                        ApiError(429, "rate_limited", "too many messages; slow down"), None
                    )
                    continue
                if event.get("text") is None:
                    await self._refuse(
                        ApiError(400, "binary_not_allowed", "send text messages only"), None
                    )
                    continue
                await self._obey(event["text"])

    def _too_fast(self) -> bool:
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + RATE * (now - self._refilled))
        self._refilled = now
        if self._tokens >= 1:
            self._tokens -= 1
            return False
        self._refused += 1
        if self._refused > MOST_REFUSED:
            self._end("rate_limited", "too many messages")
        return True

    async def _obey(self, text: str) -> None:
        event_id = None
        try:
            value = parse_object(text)
            event_id = value.get("event_id")
            event_id = event_id if isinstance(event_id, str) and len(event_id) <= 64 else None
            if event_id is not None:
                if event_id in self._events:
                    raise ApiError(400, "duplicate_event", "this event_id was used", "event_id")
                self._events.append(event_id)
            await self._do(self._parsed(value))
        except ApiError as error:
            await self._refuse(error, event_id)
        except OSError as error:
            log("live_storage", kind=type(error).__name__, detail=str(error))
            refusal = ApiError(507, "insufficient_storage", "the server's disk refuses")
            await self._refuse(refusal, event_id)

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
                await self._say("session.pong", event_id=message.event_id)
            case protocol.SessionStart() | protocol.SessionResume():
                await self._change(message)
            case protocol.SessionPrompt():
                await self._prompt(message)
            case protocol.SessionLora():
                loras = {lora.name: lora.scale for lora in message.loras}
                chunk = await self._running.set_loras(loras)
                shown = [lora.model_dump() for lora in message.loras]
                await self._say("session.loras", loras=shown, chunk=chunk)
            case protocol.SessionPlayed():
                self._running.played(message.chunk)
            case protocol.SessionBranch():
                await self._branch(message)
            case protocol.SessionExtend():
                await self._extend(message)
            case protocol.SessionSave():
                session = self._running
                chunk = await session.save(message.chunk, message.name)
                await self._say("session.saved", session=session.id, chunk=chunk, name=message.name)
            case protocol.SessionStop():
                if self._starting is not None and self._session is None:
                    self._starting.cancel()
                    await self._say("session.done", session=None, reason="stopped", chunks=0)
                else:
                    await self._running.stop()

    @property
    def _running(self) -> Session:
        if self._session is None:
            raise ApiError(409, "no_session", "there is no session yet; send session.start")
        return self._session

    async def _change(self, message: protocol.SessionStart | protocol.SessionResume) -> None:
        """Start or take up a session, in a task of its own: it may wait in line."""
        if self._starting is not None and not self._starting.done():
            raise ApiError(409, "session_active", "a session is being started")
        await self._leave()
        self._starting = asyncio.create_task(self._begin(message))

    async def _begin(self, message: protocol.SessionStart | protocol.SessionResume) -> None:
        try:
            if isinstance(message, protocol.SessionStart):
                session = await self._service.sessions.start(message, self._owner, self._queued)
            else:
                session = await self._service.sessions.resume(message, self._owner, self._queued)
        except ApiError as error:
            await self._refuse(error, message.event_id)
            return
        except OSError as error:
            log("live_storage", kind=type(error).__name__, detail=str(error))
            storage = ApiError(507, "insufficient_storage", "the server's disk refuses")
            await self._refuse(storage, message.event_id)
            return
        finally:
            self._place = 0
        have = message.have if isinstance(message, protocol.SessionResume) else 0
        with suppress(WebSocketDisconnect, RuntimeError):  # the reader notices too
            await self._show(session, replay_from=have)

    async def _queued(self, session: str, place: int, waiting: int) -> None:
        self._place = place
        await self._say("session.queued", session=session, place=place, waiting=waiting)

    async def _show(self, session: Session, *, replay_from: int | None = None) -> None:
        """Make ``session`` the one of this connection and carry what it makes."""
        self._session = session
        await self._say(
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
        await self._say(
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
        answer = await self._running.prompt(message.prompt, message.transition_chunks)
        if answer["superseded"] is not None:
            await self._say("prompt.superseded", prompt=answer["superseded"])
        await self._say(
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
        await self._say(
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
        await self._say("session.extended", session=session.id, chunk=chunk, num_frames=length)
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
            await self._refuse(ApiError(507, "insufficient_storage", "the disk is full"), None)
            await session.stop()

    async def _chunk(self, session: Session, message: Message, body: bytes) -> None:
        await session.record(message, body)
        if message["landed"] is not None:
            await self._say("prompt.applied", **message["landed"])
        await self._send_chunk(session, message, body, replayed=False)
        session.taken()

    async def _send_chunk(
        self, session: Session, message: Message, body: bytes, *, replayed: bool
    ) -> None:
        fps, timings = session.settings["fps"], message["timings"]
        await self._say(
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
        await self._say(
            "session.done",
            session=session.id,
            reason=reason,
            chunks=len(session.recording),
            frames=session.recording.frames,
        )

    async def _failed(self, session: Session, message: Message) -> None:
        """The worker lost the session; it goes on from its last state when asked."""
        text = message.get("message") or "the worker is being replaced; resume the session"
        await self._refuse(ApiError(503, message["code"], text), None)
        self._session = None
        await self._service.sessions.lose(session, message["code"])
        await self._say(
            "session.done",
            session=session.id,
            reason="worker",
            chunks=len(session.recording),
            frames=session.recording.frames,
        )

    async def _say(self, kind: str, body: bytes | None = None, **values: Any) -> None:
        """Send a message, and its bytes right after it.

        A client that takes nothing for too long ends the connection.
        """
        if kind in ("video.start", "video.chunk"):
            values["bytes"] = len(body or b"")
        text = json.dumps(
            {"type": kind, **{k: v for k, v in values.items() if k != "event_id"}}
            | ({"event_id": values["event_id"]} if values.get("event_id") else {})
        )
        try:
            async with self._sending, asyncio.timeout(self._limits.stall):
                await self._socket.send_text(text)
                if body is not None:
                    await self._socket.send_bytes(body)
        except TimeoutError:
            self._end("slow_consumer", "the client took nothing for too long")
            raise RuntimeError("slow consumer") from None

    async def _refuse(self, error: ApiError, event_id: str | None) -> None:
        body = {
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "event_id": event_id,
        }
        await self._say("error", error=body, fatal=False)

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
                        self._end("idle", "no session was started")
                elif idle and now - self._heard > self._limits.idle:
                    self._end("idle", "nothing was asked for too long")
                session = self._session
                if session is not None:
                    await session.keep_time()
                await self._say("health", **self._service.health(session, self._place))

    def _end(self, code: str, message: str) -> None:
        if not self._hangup.done():
            self._hangup.set_result(HangupError(code, message))

    async def drain(self, seconds: float) -> None:
        """Say that the server stops, and end."""
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._say("server.draining", seconds=seconds)
        self._end("draining", "the server stops")

    async def _close(self, why: HangupError) -> None:
        self._service.metrics.dropped.labels(why.code).inc()
        number = CLOSE_CODES.get(why.code, 1011)
        with suppress(Exception):
            async with asyncio.timeout(1.0):
                if number != 1001 and not self._sending.locked():
                    error = {"code": why.code, "message": str(why), "param": None, "event_id": None}
                    text = json.dumps({"type": "error", "error": error, "fatal": True})
                    await self._socket.send_text(text)
                await self._socket.close(number, why.code)

    async def _leave(self) -> None:
        """Park the session; the place on the worker is free when this returns."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
            self._pump = None
        session, self._session = self._session, None
        if session is not None:
            await self._service.sessions.park(session)
