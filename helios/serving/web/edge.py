"""The border of the service: every request and handshake passes here before any route.

Limits that hold while bytes arrive, the guard's decisions, request identifiers, headers that a
browser needs, and one form of refusal (specification "reliability", 3.5 and 3.6).
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from helios.serving.config import Limits
from helios.serving.errors import ApiError
from helios.serving.logs import log
from helios.serving.protocol import SUBPROTOCOL
from helios.serving.service import Service
from helios.serving.web.security import Guard

__all__ = [
    "Edge",
    "Metered",
    "address_of",
    "body_limit",
    "check_length",
    "headers_of",
    "refuse_http",
    "refuse_socket",
]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SLOW_SECONDS, SLOW_BYTES = 20.0, 20 * 1024
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_BODIES = ("application/json", "multipart/form-data")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        b"media-src 'self' blob:; connect-src 'self'; font-src 'self'; manifest-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Edge:
    """ASGI middleware around ``app``."""

    def __init__(self, app: Any, service: Service, guard: Guard) -> None:
        self._app = app
        self._service = service
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, handshake or lifespan."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        began, status, started = time.monotonic(), 500, False

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                own = [(b"x-request-id", request_id.encode()), *_HEADERS]
                names = {name for name, _ in message.get("headers", [])}
                message["headers"] = [
                    *message.get("headers", []),
                    *(pair for pair in own if pair[0] not in names),
                ]
            await send(message)

        try:
            self._check_request(scope, headers)
            await self._app(
                scope,
                Metered(receive, body_limit(self._service.config.limits, headers), headers),
                answer,
            )
        except ApiError as error:
            await refuse_http(answer, error)
        except Exception as error:
            log("request_failed", request=request_id, kind=type(error).__name__, detail=str(error))
            if not started:
                refusal = ApiError(500, "internal_error", "something went wrong; see the log")
                await refuse_http(answer, refusal)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._service.metrics.requests.labels(route, str(status)).inc()
            if not route.startswith("/health"):
                log(
                    "request",
                    request=request_id,
                    method=scope["method"],
                    route=route,
                    status=status,
                    seconds=round(time.monotonic() - began, 4),
                )

    def _check_request(self, scope: Scope, headers: dict[str, str]) -> None:
        limits, method, path = self._service.config.limits, scope["method"], scope["path"]
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header:
            raise ApiError(431, "headers_too_large", "the headers are too large")
        changes = method not in _SAFE
        owner = self._guard.admit(method, path, headers, address_of(scope))
        scope.setdefault("state", {})["owner"] = owner
        if not changes:
            return
        if headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "unsupported_encoding", "send the body without Content-Encoding")
        length = headers.get("content-length")
        check_length(headers, limits)
        has_body = length not in (None, "0") or "transfer-encoding" in headers
        kind = headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if (has_body or kind) and kind not in _BODIES:
            raise ApiError(
                415, "unsupported_content_type", "send application/json or multipart/form-data"
            )

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, protocols = headers_of(scope), scope.get("subprotocols", [])
        try:
            owner = self._guard.admit_socket(headers, protocols, address_of(scope))
            scope.setdefault("state", {})["owner"] = owner
            scope["subprotocols"] = [name for name in protocols if name == SUBPROTOCOL]
            self._service.check_accepting()
            self._service.line.check()
        except ApiError as error:
            self._service.metrics.dropped.labels(error.code).inc()
            await receive()
            await refuse_socket(send, error)
            return
        await self._app(scope, receive, send)


def body_limit(limits: Limits, headers: dict[str, str]) -> int:
    """Bytes that a request with these headers may send."""
    kind = headers.get("content-type", "")
    return limits.body if kind.startswith("multipart/") else min(limits.body, 32 << 20)


def check_length(headers: dict[str, str], limits: Limits) -> None:
    """Refuse a body that says that it is too large.

    Raises:
        ApiError: 413 ``body_too_large``, 400 for a length that is no number.
    """
    length = headers.get("content-length")
    if length is None:
        return
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise ApiError(400, "invalid_value", "Content-Length is not a number")
    if int(length) > body_limit(limits, headers):
        raise _too_large()


class Metered:
    """``receive`` that counts what arrives and how fast."""

    def __init__(self, receive: Receive, limit: int, headers: dict[str, str]) -> None:
        self._receive = receive
        self._limit = limit
        self._seen, self._window, self._since = 0, 0, time.monotonic()
        self._over = False

    async def __call__(self) -> MutableMapping[str, Any]:
        """The next message.

        Raises:
            ApiError: 408 or 413.
        """
        if self._over:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), SLOW_SECONDS)
        except TimeoutError:
            raise _too_slow() from None
        if message["type"] != "http.request":
            self._over = True
            return message
        size = len(message.get("body", b""))
        self._over = not message.get("more_body", False)
        self._seen += size
        self._window += size
        if self._seen > self._limit:
            raise _too_large()
        now = time.monotonic()
        if now - self._since > SLOW_SECONDS:
            if self._window < SLOW_BYTES and not self._over:
                raise _too_slow()
            self._window, self._since = 0, now
        return message


def _too_large() -> ApiError:
    return ApiError(413, "body_too_large", "the body is too large", headers={"Connection": "close"})


def _too_slow() -> ApiError:
    return ApiError(
        408, "body_too_slow", "the body came too slowly", headers={"Connection": "close"}
    )


def headers_of(scope: Scope) -> dict[str, str]:
    """Headers by lower-case name; one that is there twice counts as malformed where it matters."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def address_of(scope: Scope) -> str:
    """Where the other end is."""
    client = scope.get("client")
    return client[0] if client else ""


def _pairs(error: ApiError, body: bytes) -> list[tuple[bytes, bytes]]:
    own = {"content-type": "application/json", "content-length": str(len(body))} | error.headers
    return [(name.lower().encode(), value.encode()) for name, value in own.items()]


async def refuse_http(send: Send, error: ApiError) -> None:
    """Answer a request with the one form of a refusal."""
    body = json.dumps(error.body).encode()
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": _pairs(error, body),
        }
    )
    await send({"type": "http.response.body", "body": body})


async def refuse_socket(send: Send, error: ApiError) -> None:
    """The same for a handshake."""
    body = json.dumps(error.body).encode()
    await send(
        {
            "type": "websocket.http.response.start",
            "status": error.status,
            "headers": _pairs(error, body),
        }
    )
    await send({"type": "websocket.http.response.body", "body": body})
