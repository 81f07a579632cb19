"""The sending end of a live connection: whole messages to a client that has to keep up."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from helios.serving.errors import ApiError
from helios.serving.live.omni import Omni, is_omni
from helios.serving.metrics import Metrics

__all__ = ["HangupError", "LiveSocket", "MessageRate"]

RATE, BURST, MOST_REFUSED = 10.0, 20.0, 100
CLOSE_CODES = {"slow_consumer": 1008, "idle": 1008, "rate_limited": 1008, "draining": 1001}


class HangupError(Exception):
    """The connection ends now, with a code of the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MessageRate:
    """How fast a client may talk: ten messages a second, twenty at once."""

    def __init__(self) -> None:
        self._tokens, self._refilled = BURST, time.monotonic()
        self._refused = 0

    def take(self) -> bool:
        """Whether one more message may be heard now.

        Raises:
            HangupError: if far too many came.
        """
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + RATE * (now - self._refilled))
        self._refilled = now
        if self._tokens >= 1:
            self._tokens -= 1
            return True
        self._refused += 1
        if self._refused > MOST_REFUSED:
            raise HangupError("rate_limited", "too many messages")
        return False


class LiveSocket:
    """What goes out of a WebSocket; a message and its bytes are never parted.

    Args:
        socket: accepted.
        stall: seconds after which a client that takes nothing is given up.
        metrics: count who was.

    Attributes:
        ended: why the connection has to end, once it has to.
    """

    def __init__(self, socket: WebSocket, stall: float, metrics: Metrics) -> None:
        self.ended: asyncio.Future[HangupError] = asyncio.get_running_loop().create_future()
        self._socket = socket
        self._stall = stall
        self._metrics = metrics
        self._sending = asyncio.Lock()
        self._omni: Omni | None = None

    def understood(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message of the client in our words, whatever dialect it speaks.

        Raises:
            ApiError: 400, if it makes no sense in its dialect.
        """
        if self._omni is None and is_omni(message):
            self._omni = Omni()
        return message if self._omni is None else self._omni.inwards(message)

    async def say(self, kind: str, body: bytes | None = None, **values: Any) -> None:
        """Send a message, and its bytes right after it.

        A client that takes nothing for too long ends the connection.

        Raises:
            RuntimeError: if it does, or the connection is gone.
        """
        if self._omni is not None:
            told = self._omni.outwards(kind, body, values)
            if told is None:
                return
            message, body = told
        else:
            if kind in ("video.start", "video.chunk"):
                values["bytes"] = len(body or b"")
            event = values.pop("event_id", None)
            message = {"type": kind, **values} | ({"event_id": event} if event else {})
        text = json.dumps(message)
        try:
            async with self._sending, asyncio.timeout(self._stall):
                await self._socket.send_text(text)
                if body is not None:
                    await self._socket.send_bytes(body)
        except TimeoutError:
            self.end("slow_consumer", "the client took nothing for too long")
            raise RuntimeError("slow consumer") from None

    async def refuse(self, error: ApiError, event_id: str | None) -> None:
        """Say what went wrong; the session goes on."""
        body = {
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "event_id": event_id,
        }
        await self.say("error", error=body, fatal=False)

    def end(self, code: str, message: str) -> None:
        """Let the connection end; the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(HangupError(code, message))

    async def drain(self, seconds: float) -> None:
        """Say that the server stops, and end."""
        with suppress(WebSocketDisconnect, RuntimeError):
            await self.say("server.draining", seconds=seconds)
        self.end("draining", "the server stops")

    async def close(self, why: HangupError) -> None:
        """Say why, if that can be said, and close."""
        self._metrics.dropped.labels(why.code).inc()
        number = CLOSE_CODES.get(why.code, 1011)
        with suppress(Exception):
            async with asyncio.timeout(1.0):
                if number != 1001 and not self._sending.locked():
                    error = {"code": why.code, "message": str(why), "param": None, "event_id": None}
                    text = json.dumps({"type": "error", "error": error, "fatal": True})
                    await self._socket.send_text(text)
                await self._socket.close(number, why.code)
