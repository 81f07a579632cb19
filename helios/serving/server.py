"""Running it: sockets, signals, and the way down.

SIGTERM or Ctrl-C drains: nothing new is accepted, live clients are told, running jobs get the
grace. A second signal ends it at once (specification "reliability", requirement 50).
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from helios.serving.config import ServeConfig
from helios.serving.logs import JsonFormatter, log
from helios.serving.service import Service
from helios.serving.web.app import create_app

__all__ = ["check_versions", "serve"]

FLOORS = {"starlette": (0, 49, 1), "python-multipart": (0, 0, 31)}
"""Older ones let a stranger's request take the server down (specification "reliability", 71)."""

HEADER_SECONDS = 10.0
MESSAGE_BYTES = 128 * 1024
SEND_BYTES = 512 * 1024
LAST_SECONDS = 4.0
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _Connections:
    """How many are open, in all and by address."""

    def __init__(self, most: int, per_address: int) -> None:
        self.most = most
        self.per_address = per_address
        self.open: dict[str, int] = {}

    def enter(self, address: str) -> bool:
        """Count one in, if there is room."""
        if sum(self.open.values()) >= self.most or self.open.get(address, 0) >= self.per_address:
            return False
        self.open[address] = self.open.get(address, 0) + 1
        return True

    def leave(self, address: str) -> None:
        """Count one out."""
        left = self.open.get(address, 1) - 1
        if left:
            self.open[address] = left
        else:
            self.open.pop(address, None)


def _protocol(connections: _Connections) -> type[H11Protocol]:
    class Bounded(H11Protocol):
        """HTTP with a deadline for the headers and a bound on connections."""

        _address: str | None = None
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            address = _peer(transport)
            if not connections.enter(address):
                transport.write(BUSY)
                transport.close()
                self._refused = True
                return
            self._address = address
            super().connection_made(transport)
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)

        _refused = False

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            super().data_received(data)
            if self._has_headers():
                self._cancel_deadline()

        def _has_headers(self) -> bool:
            return getattr(self, "scope", None) is not None

        def _cancel_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            if not self._has_headers() and not self.transport.is_closing():
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._refused:
                return
            if self._address is not None:
                connections.leave(self._address)
            self._cancel_deadline()
            super().connection_lost(exc)

        def eof_received(self) -> None:
            if not self._refused:
                super().eof_received()

    return Bounded


def _socket_protocol(connections: _Connections) -> type[WebSocketsSansIOProtocol]:
    class Counted(WebSocketsSansIOProtocol):
        """A WebSocket that takes over a connection of ``Bounded``, and its place."""

        async def send(self, message: Any) -> None:
            await super().send(message)
            # A refusal is an answer like any other, not a handshake that was forgotten.
            if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
                self.handshake_complete = True

        def connection_lost(self, exc: Exception | None) -> None:
            connections.leave(_peer(self.transport))
            super().connection_lost(exc)

    return Counted


def _peer(transport: Any) -> str:
    """The address of the other end."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else "local"


def serve(config: ServeConfig, *, announce: Any = None) -> None:
    """Serve until a signal; returns when everything is put away.

    Args:
        config: what the operator decided.
        announce: called with the address once a worker is ready.

    Raises:
        OSError: if the address or the data folder cannot be used.
        BrokenModelError: if no model can be loaded.
        ValueError: if a library is too old to be safe.
    """
    check_versions()
    _log_json()
    listener = _listen(config)
    service = Service(config)
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(config, service, listener, announce))
    broken = [worker.broken for worker in service.supervisor.workers if worker.broken is not None]
    if broken:
        raise broken[0]


def check_versions() -> None:
    """Refuse to serve with libraries whose holes are known.

    Raises:
        ValueError: naming the library, and what to do.
    """
    for name, least in FLOORS.items():
        found = version(name)
        if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < least:
            wanted = f"{name}>={'.'.join(map(str, least))}"
            raise ValueError(f"{name} {found} is not safe to serve with: pip install '{wanted}'")


async def _run(
    config: ServeConfig, service: Service, listener: socket.socket, announce: Any
) -> None:
    server = uvicorn.Server(_uvicorn_config(config, service))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        if stop.is_set():
            server.force_exit = server.should_exit = True
            for worker in service.supervisor.workers:
                worker.kill()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    serving = asyncio.create_task(server._serve([listener]))
    watching = asyncio.create_task(_watch_start(service, stop, announce, listener))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    if not serving.done():
        log("draining", grace=config.limits.grace)
        await service.drain(config.limits.grace)
        server.should_exit = True
        await asyncio.wait({serving}, timeout=LAST_SECONDS)
        if not serving.done():
            serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    log("stopped")


def _uvicorn_config(config: ServeConfig, service: Service) -> uvicorn.Config:
    limits = config.limits
    connections = _Connections(limits.connections, limits.per_address)
    return uvicorn.Config(
        create_app(service),
        http=_protocol(connections),
        ws=_socket_protocol(connections),
        ws_max_size=MESSAGE_BYTES,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,
        h11_max_incomplete_event_size=2 * limits.header,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
        server_header=False,
        access_log=False,
        log_config=None,
        lifespan="on",
    )


async def _watch_start(
    service: Service, stop: asyncio.Event, announce: Any, listener: socket.socket
) -> None:
    """Say when it is ready; end if no model can be loaded at all."""
    workers = service.supervisor.workers
    while not any(worker.ready for worker in workers):
        if all(worker.broken is not None for worker in workers):
            stop.set()
            return
        await service.supervisor.change(timeout=1.0)
    if announce is not None:
        host, port = listener.getsockname()[:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # The event loop turns Nagle's delay off only on sockets that say they are TCP; without that
    # every answer of two writes waits 40 ms for the other end's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The system would hold megabytes for a client that takes nothing; accepted ones inherit it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listener.bind((config.host, config.port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        where = f"{config.host}:{config.port}"
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def _log_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
