"""Messages between the front process and a worker: a length, JSON, raw bytes. No pickle.

The two ends of a socket pair that only parent and child have. ``FRAME`` is the length of the JSON
and of the bytes after it, big-endian.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["Channel", "ClosedError", "Message", "receive", "send"]

Message: TypeAlias = dict[str, Any]

_FRAME = struct.Struct(">II")
_MOST_JSON = 16 << 20
_MOST_BYTES = 256 << 20


class ClosedError(ConnectionError):
    """The other end is gone, or said something that is no message."""


def _packed(message: Mapping[str, Any], body: bytes) -> bytes:
    text = json.dumps(message, separators=(",", ":")).encode()
    return _FRAME.pack(len(text), len(body)) + text


def _lengths(frame: bytes) -> tuple[int, int]:
    text, body = _FRAME.unpack(frame)
    if text > _MOST_JSON or body > _MOST_BYTES:
        raise ClosedError(f"a message of {text} and {body} bytes is not one of ours")
    return text, body


def _parsed(text: bytes) -> Message:
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ClosedError("a message that is not an object")
    return message


class Channel:
    """The worker's end: blocking; sending from several threads is safe."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any], body: bytes = b"") -> None:
        """Send a message, waiting while the other end is slow."""
        with self._lock:
            self._socket.sendall(_packed(message, body))
            if body:
                self._socket.sendall(body)

    def receive(self) -> tuple[Message, bytes]:
        """The next message.

        Raises:
            ClosedError: when there will be none.
        """
        text, body = _lengths(self._read(_FRAME.size))
        return _parsed(self._read(text)), self._read(body)

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise ClosedError("the other end is gone")
        return data


async def receive(reader: asyncio.StreamReader) -> tuple[Message, bytes]:
    """The next message of a worker.

    Raises:
        ClosedError: when there will be none.
    """
    try:
        text, body = _lengths(await reader.readexactly(_FRAME.size))
        return _parsed(await reader.readexactly(text)), await reader.readexactly(body)
    except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
        raise ClosedError("the worker is gone") from error


def send(writer: asyncio.StreamWriter, message: Mapping[str, Any], body: bytes = b"") -> None:
    """Send a message to a worker; commands are small, so nobody waits."""
    writer.write(_packed(message, body) + body)
