"""Several machines or GPUs behind one address, on Ray Serve (``helios serve --ray``).

Every node is an actor with a whole server of its own (front process, worker, journal, data) that
only listens on its machine and knows the callers' keys and one secret one. The gateway, a Ray Serve
deployment, decides about hosts, pages and keys as a server does, and passes requests, streams and
sockets on. A caller always comes to the same node: whoever has a key by the key, others by a
cookie; so sessions, uploads and results are where they were made, and belong to whoever made them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from helios.serving.config import ServeConfig
from helios.serving.edge import address_of, headers_of, refuse_http, refuse_socket
from helios.serving.errors import ApiError
from helios.serving.protocol import SUBPROTOCOL
from helios.serving.security import Guard, ticket_shape

__all__ = ["Gateway", "Node", "node_keys", "node_of", "node_options", "serve_on_ray"]

COOKIE = "helios_node"
TICKETS = "/v1/realtime/tickets"
_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "upgrade", "host", "te", "trailer"}
)


def node_of(caller: str, count: int) -> int:
    """The node of a caller: always the same, and evenly spread."""
    return int.from_bytes(hashlib.sha256(caller.encode()).digest()[:8]) % count


class Node:
    """A server on the machine of this actor.

    Args:
        options: of its command line.
        data: folder for its results; the number of the node is added.
        number: of the node.
        keys: by name, those of the callers and the gateway's own.
    """

    def __init__(self, options: list[str], data: str, number: int, keys: dict[str, str]) -> None:
        folder = Path(data) / f"node-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="helios-key-")
        with os.fdopen(handle, "w") as file:
            file.writelines(f"{name} {key}\n" for name, key in keys.items())
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "helios", "serve", "--port", "0",
                    "--data", str(folder / "data"), "--api-key-file", name, *options,
                ],
                stderr=log,
            )  # fmt: skip
        self._key_file = Path(name)

    def address(self, timeout: float = 600.0) -> str:
        """Where it listens, once its worker is ready.

        Raises:
            RuntimeError: if it ends before.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            text = self._log.read_text("utf-8", "replace")
            if found := re.search(r"helios is ready at (\S+)", text):
                self._key_file.unlink(missing_ok=True)
                return found[1]
            if self._process.poll() is not None:
                raise RuntimeError(f"the node ended: {text[-1000:]}")
            time.sleep(0.1)
        raise RuntimeError("the node was not ready in time")

    def stop(self) -> None:
        """Let it drain."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(60)


class Gateway:
    """An ASGI application that passes everything on to the caller's node.

    Args:
        addresses: of the nodes.
        key: the secret they know; for callers who need none.
        config: whose keys, hosts and pages are let in.
    """

    def __init__(self, addresses: list[str], key: str, config: ServeConfig) -> None:
        self._addresses = addresses
        self._key = key
        self._keys = config.keys
        self._guard = Guard(config)
        self._client: Any = None
        """Made where it is used: the gateway itself travels to the process that serves it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request or socket."""
        if scope["type"] == "http":
            try:
                await self._http(scope, receive, send)
            except ApiError as error:
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

    def _caller(self, owner: str, headers: dict[str, str]) -> tuple[int, str, str | None]:
        """Node and key of a caller, and a cookie for one that has nothing to be known by."""
        count = len(self._addresses)
        if owner in self._keys:
            return node_of(self._keys[owner], count), self._keys[owner], None
        found = re.search(rf"{COOKIE}=([0-9a-f]{{16}})\b", headers.get("cookie", ""))
        if found:
            return node_of(found[1], count), self._key, None
        word = secrets.token_hex(8)
        return node_of(word, count), self._key, word

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        known, path = headers_of(scope), scope["path"]
        owner = self._guard.admit(scope["method"], path, known, address_of(scope))
        if (scope["method"], path) == ("POST", TICKETS) and self._keys:
            # The nodes never see a ticket: it says who opens the socket, so to which node it goes.
            await _answer(send, ticket_shape(self._guard.ticket(owner)))
            return
        node, key, word = self._caller(owner, known)
        path = scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        url = f"{self._addresses[node]}{path}{'?' + query if query else ''}"
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.decode("latin-1").lower() not in _HOP | {"authorization", "origin"}
        ]
        headers.append(("authorization", f"Bearer {key}"))

        async def body() -> Any:
            while True:
                message = await receive()
                yield message.get("body", b"")
                if not message.get("more_body"):
                    return

        plain = scope["method"] in ("GET", "HEAD", "DELETE")
        if self._client is None:
            import httpx

            self._client = httpx.AsyncClient(timeout=None)
        request = self._client.build_request(
            scope["method"], url, headers=headers, content=None if plain else body()
        )
        answer = await self._client.send(request, stream=True)
        try:
            kept = [
                (name, value)
                for name, value in answer.headers.raw
                if name.decode().lower() not in _HOP
            ]
            if word is not None:
                kept.append((b"set-cookie", f"{COOKIE}={word}; HttpOnly; SameSite=Strict".encode()))
            start = {"type": "http.response.start", "status": answer.status_code, "headers": kept}
            await send(start)
            async for data in answer.aiter_raw():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()

    async def _socket(self, scope: Any, receive: Any, send: Any) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidStatus

        known = headers_of(scope)
        protocols = list(scope.get("subprotocols", []))
        owner = self._guard.admit_socket(known, protocols, address_of(scope))
        node, key, _ = self._caller(owner, known)
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
        except InvalidStatus:
            await send({"type": "websocket.close", "code": 1013})
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd is not None else 1011
            with suppress(Exception):
                await send({"type": "websocket.close", "code": code})


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


def node_options(config: ServeConfig) -> list[str]:
    """The command line of a node: models, device and limits are those of the gateway."""
    options = ["--device", config.device, "--dtype", config.dtype]
    options += [part for model in config.models for part in ("--model", model)]
    options += [part for n, p in config.loras.items() for part in ("--lora", f"{n}={p}")]
    options += [part for n, v in vars(config.limits).items() for part in ("--limit", f"{n}={v}")]
    return options


def node_keys(config: ServeConfig, key: str) -> dict[str, str]:
    """The keys that a node knows: those of the callers, by their names, and the gateway's own."""
    name = next(name for name in ("gateway", secrets.token_hex(8)) if name not in config.keys)
    return {**config.keys, name: key}


def serve_on_ray(config: ServeConfig, *, nodes: int, gpus: float, announce: Any = None) -> None:
    """Start ``nodes`` nodes and the gateway on Ray, and stay until a signal.

    Args:
        config: of the gateway; models, device and limits go to the nodes.
        nodes: how many, spread over the cluster.
        gpus: of each node; 0: CPU.
        announce: called with the address.

    Raises:
        ModuleNotFoundError: without the extra ``ray``.
    """
    import ray
    from ray import serve

    options = node_options(config)
    key = secrets.token_urlsafe(32)
    keys = node_keys(config, key)
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    # Processors are not counted: on a small machine the gateway would wait for one for ever.
    actor = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(Node)
    actors = [actor.remote(options, str(config.data), number, keys) for number in range(nodes)]
    try:
        addresses = ray.get([node.address.remote() for node in actors])
        port = config.port or _free_port(config.host)
        serve.start(http_options={"host": config.host, "port": port})
        gateway = serve.ingress(Gateway(addresses, key, config))(_Ingress)
        ingress = serve.deployment(gateway, ray_actor_options={"num_cpus": 0})
        serve.run(ingress.bind(), route_prefix="/")
        if announce is not None:
            announce(f"http://{config.host}:{port}")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        ray.get([node.stop.remote() for node in actors])
        serve.shutdown()
        ray.shutdown()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class _Ingress:
    """The deployment that Ray Serve routes to; the gateway is its application."""
