"""The door before several servers: who comes in, to which of them, and everything passed on.

The gateway decides about hosts, pages and keys as a server does. A caller always comes to the
same node: whoever has a key by the key, a browser by a cookie that the page gives it, other
programs by where they are; so sessions, uploads and results are where they were made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from helios.serving.config import ServeConfig
from helios.serving.errors import ApiError
from helios.serving.logs import log
from helios.serving.protocol import SUBPROTOCOL
from helios.serving.web.edge import (
    Metered,
    address_of,
    body_limit,
    check_length,
    headers_of,
    refuse_http,
    refuse_socket,
)
from helios.serving.web.security import Guard, ticket_shape

__all__ = ["COOKIE", "Gateway", "node_of"]

COOKIE = "helios_node"
TICKETS = "/v1/realtime/tickets"
PAGE = "/"
_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "te", "trailer"}
)
_REFUSAL = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


class _GoneError(Exception):
    """The client left before its request was complete."""


def node_of(caller: str, count: int) -> int:
    """The node of a caller: always the same, and evenly spread."""
    return int.from_bytes(hashlib.sha256(caller.encode()).digest()[:8]) % count


class Gateway:
    """An ASGI application that passes everything on to the caller's node.

    Args:
        addresses: of the nodes.
        key: the secret they know; for callers who need none.
        config: whose keys, hosts and pages are let in, and how much a request may send.
    """

    def __init__(self, addresses: list[str], key: str, config: ServeConfig) -> None:
        self._addresses = addresses
        self._key = key
        self._keys = config.keys
        self._limits = config.limits
        self._guard = Guard(config)
        self._client: Any = None
        """Made where it is used: the gateway itself travels to the process that serves it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request or socket."""
        if scope["type"] == "http":
            try:
                await self._http(scope, receive, send)
            except ApiError as error:
                error.headers |= {"x-request-id": secrets.token_hex(8), **_REFUSAL}
                await refuse_http(send, error)
        elif scope["type"] == "websocket":
            await receive()
            try:
                await self._socket(scope, receive, send)
            except ApiError as error:
                if "websocket.http.response" in scope.get("extensions", {}):
                    await refuse_socket(send, error)
                else:
                    await send({"type": "websocket.close", "code": 1008})

    def _caller(self, owner: str, scope: Any, headers: dict[str, str]) -> tuple[int, str, str]:
        """Node and key of a caller, and the cookie that a page gives to a browser without one."""
        count = len(self._addresses)
        if owner in self._keys:
            return node_of(self._keys[owner], count), self._keys[owner], ""
        found = re.search(rf"{COOKIE}=([0-9a-f]{{16}})\b", headers.get("cookie", ""))
        if found:
            return node_of(found[1], count), self._key, ""
        if scope["type"] == "http" and scope["path"] == PAGE:
            word = secrets.token_hex(8)
            return node_of(word, count), self._key, word
        # A key that nobody asked for tells programs of one machine apart.
        word = f"{address_of(scope)} {headers.get('authorization', '')}"
        return node_of(word, count), self._key, ""

    # ---------------------------------------------------------------------------- requests

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        known, path = headers_of(scope), scope["path"]
        owner = self._guard.admit(scope["method"], path, known, address_of(scope))
        if (scope["method"], path) == ("POST", TICKETS) and self._keys:
            # The nodes never see a ticket: it says who opens the socket, so to which node it goes.
            await _answer(send, ticket_shape(self._guard.ticket(owner)))
            return
        # A node that refuses a body while it comes would close on the gateway, not on the client.
        check_length(known, self._limits)
        received = asyncio.Event()
        metered = Metered(receive, body_limit(self._limits, known), known)
        working = asyncio.create_task(self._pass_on(scope, metered, send, owner, known, received))
        leaving = asyncio.create_task(_left(receive, received))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        if not working.cancelled():
            with suppress(_GoneError):
                working.result()

    async def _pass_on(
        self,
        scope: Any,
        receive: Any,
        send: Any,
        owner: str,
        known: dict[str, str],
        received: asyncio.Event,
    ) -> None:
        """One request to the caller's node, and its answer back as it comes."""
        import httpx

        node, key, word = self._caller(owner, scope, known)
        query = scope["query_string"].decode("latin-1")
        path = scope["raw_path"].decode("latin-1")
        url = f"{self._addresses[node]}{path}{'?' + query if query else ''}"
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.decode("latin-1").lower() not in _HOP | {"authorization", "origin"}
        ]
        headers.append(("authorization", f"Bearer {key}"))
        has_body = "transfer-encoding" in known or known.get("content-length", "0") != "0"
        if not has_body:
            received.set()
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(None, connect=10), limits=httpx.Limits(max_connections=None)
            )
        request = self._client.build_request(
            scope["method"], url, headers=headers,
            content=_body(receive, received) if has_body else None,
        )  # fmt: skip
        started = False
        try:
            answer = await self._client.send(request, stream=True)
            try:
                kept = [pair for pair in answer.headers.raw if pair[0].decode().lower() not in _HOP]
                if word:
                    cookie = f"{COOKIE}={word}; HttpOnly; SameSite=Strict"
                    kept.append((b"set-cookie", cookie.encode()))
                start = {"type": "http.response.start", "status": answer.status_code}
                await send(start | {"headers": kept})
                started = True
                async for data in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await answer.aclose()
        except httpx.TransportError as error:
            log("node_lost", node=node, kind=type(error).__name__)
            if started:
                raise  # the answer cannot be taken back; it ends short
            raise ApiError(
                503, "not_ready", "the node does not answer", headers={"Retry-After": "5"}
            ) from None

    # ----------------------------------------------------------------------------- sockets

    async def _socket(self, scope: Any, receive: Any, send: Any) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidStatus

        known = headers_of(scope)
        protocols = list(scope.get("subprotocols", []))
        owner = self._guard.admit_socket(known, protocols, address_of(scope))
        node, key, _ = self._caller(owner, scope, known)
        url = self._addresses[node].replace("http", "ws", 1) + scope["path"]
        headers = {"Authorization": f"Bearer {key}"}
        try:
            async with connect(
                url,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                additional_headers=headers,
                max_size=None,
                compression=None,
            ) as inner:
                offered = scope.get("subprotocols", [])
                chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
                await send({"type": "websocket.accept", "subprotocol": chosen})
                await _both_ways(inner, receive, send)
        except InvalidStatus as error:
            raise _said(error.response.status_code, error.response.body) from None
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd is not None else 1011
            with suppress(Exception):
                await send({"type": "websocket.close", "code": code})
        except OSError:
            raise ApiError(503, "not_ready", "the node does not answer") from None


async def _left(receive: Any, received: asyncio.Event) -> None:
    """Return when the client leaves after its request was complete."""
    await received.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Any, received: asyncio.Event) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        yield message.get("body", b"")
        if not message.get("more_body"):
            received.set()
            return


def _said(status: int, body: bytes | bytearray | None) -> ApiError:
    """A node's refusal of a handshake, in its own words."""
    try:
        error = json.loads(body or b"")["error"]
        return ApiError(status, str(error["code"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return ApiError(503, "not_ready", "the node does not answer")


async def _both_ways(inner: Any, receive: Any, send: Any) -> None:
    """Messages in both directions until one end leaves."""

    async def inwards() -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await inner.send(message.get("text") or message.get("bytes") or "")

    async def outwards() -> None:
        while True:
            data = await inner.recv()
            kind = "text" if isinstance(data, str) else "bytes"
            await send({"type": "websocket.send", kind: data})

    tasks = [asyncio.create_task(inwards()), asyncio.create_task(outwards())]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for task in done:
        task.result()


async def _answer(send: Any, value: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})
