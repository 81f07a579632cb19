"""Clients that are slow, silent, too many or too long, and a front process that runs out."""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from .harness import QUICK, Live, Server, finished, make, running, wait_for

pytestmark = pytest.mark.slow
OPTIONS = {"start": 1, "idle": 2, "stall": 2, "lifetime": 4, "per_address": 24, "spares": 0}


@pytest.fixture(scope="module")
def tight(tiny_random: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience."""
    options = [part for k, v in OPTIONS.items() for part in ("--limit", f"{k}={v}")]
    with running(tiny_random, tmp_path_factory.mktemp("tight") / "data", options) as server:
        yield server


def ended(live: Live, timeout: float = 20) -> tuple[str, int]:
    """Code of the fatal error and of the close."""
    code = ""
    try:
        while True:
            message = live.receive(timeout)
            if message["type"] == "error" and message["fatal"]:
                code = message["error"]["code"]
    except ConnectionClosed as closed:
        return code, closed.rcvd.code if closed.rcvd is not None else 0


def sessions(server: Server) -> float:
    return server.metric("sessions_active")


def test_who_starts_nothing_is_sent_away(tight: Server) -> None:
    """Requirement 39: the first message has a deadline."""
    with tight.live() as live:
        assert ended(live) == ("idle", 1008)


def test_who_asks_nothing_after_the_end_is_sent_away(tight: Server) -> None:
    with tight.live() as live:
        live.start(num_frames=33)
        live.until("session.done")
        assert ended(live) == ("idle", 1008)


def test_a_session_has_a_lifetime(tight: Server) -> None:
    with tight.live() as live:
        live.start()
        began = time.monotonic()
        assert live.until("session.done")["reason"] == "lifetime"
        assert time.monotonic() - began < 20
        assert live.of("video.chunk")


def test_the_newest_prompt_of_one_chunk_wins(tight: Server) -> None:
    """Requirement 42: what it replaced is reported, and never shown."""
    tight.fault("slow", seconds=0.4)
    try:
        with tight.live() as live:
            live.start(num_frames=132)
            live.until("video.chunk")
            for word in ("first", "second"):
                live.send("session.prompt", prompt=word, transition_chunks=0)
            assert live.until("prompt.superseded")["prompt"] == "first"
            live.until("session.done")
    finally:
        tight.fault("slow", seconds=0)
    (applied,) = live.of("prompt.applied")
    assert applied["prompt"] == "second"
    shown = {message["prompt"] for message in live.of("video.chunk")}
    assert shown == {QUICK["prompt"], "second"}


def handshake(server: Server) -> socket.socket:
    """A live connection by hand, which takes in as little as a socket can."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.connect(("127.0.0.1", server.port))
    key = base64.b64encode(os.urandom(16)).decode()
    own.sendall(
        (
            "GET /v1/realtime/video HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: helios.v1\r\n\r\n"
        ).encode()
    )
    assert own.recv(4096).startswith(b"HTTP/1.1 101")
    body = json.dumps({"type": "session.start", **QUICK, "width": 128, "height": 128}).encode()
    mask = os.urandom(4)
    length = bytes([0xFE]) + len(body).to_bytes(2)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))
    own.sendall(b"\x81" + length + mask + masked)
    return own


@pytest.fixture(scope="module")
def patient(tiny_random: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which sessions have no end but one that takes nothing has."""
    options = [
        part
        for limit in ("stall=2", "lifetime=0", "spares=0", "grace=60")
        for part in ("--limit", limit)
    ]
    with running(tiny_random, tmp_path_factory.mktemp("patient") / "data", options) as server:
        yield server


def test_who_takes_nothing_is_closed_and_holds_nobody_up(patient: Server) -> None:
    """Requirement 41: a slow client loses its place; its neighbour goes on meanwhile."""
    with handshake(patient):
        wait_for(lambda: sessions(patient) == 1, 20, "the start")
        with patient.live() as live:
            live.start()
            for _ in range(3):
                live.until("video.chunk")
        dropped = "slow_consumer"
        wait_for(lambda: patient.metric("ws_dropped_total", reason=dropped) == 1, 60, "its closing")
        wait_for(lambda: sessions(patient) == 0, 4, "its place")


def test_headers_that_never_end_are_cut_off(tight: Server) -> None:
    """Requirement 36: ten seconds for the headers; others are answered meanwhile."""
    with socket.create_connection(("127.0.0.1", tight.port)) as slow:
        slow.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127")
        slow.settimeout(20)
        began = time.monotonic()
        with tight.client() as client:
            assert client.get("/health/live").status_code == 200
        assert slow.recv(4096) == b""
        assert 5 < time.monotonic() - began < 20


def test_one_address_has_so_many_connections_and_gets_them_back(tight: Server) -> None:
    """Requirement 36; the last of them is told, not reset."""
    most = int(OPTIONS["per_address"])
    with ExitStack() as open_ones:
        # Connections of earlier tests, live ones too, gave their places back; soon if not yet.
        wait_for(lambda: len(connected(tight, most, open_ones)) == most, 30, "room")
        with socket.create_connection(("127.0.0.1", tight.port)) as surplus:
            surplus.settimeout(5)
            assert surplus.recv(4096).startswith(b"HTTP/1.1 503")
    wait_for(lambda: answers(tight), 10, "an answer")


def connected(server: Server, count: int, stack: ExitStack) -> list[socket.socket]:
    """So many connections that the server keeps; what it refuses is closed again."""
    own = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    kept = []
    for one in own:
        one.settimeout(0.2)
        try:
            refused = one.recv(1)
        except TimeoutError:
            kept.append(one)
            continue
        one.close()
        assert refused == b"H"
    if len(kept) < count:
        for one in kept:
            one.close()
        return []
    for one in kept:
        stack.enter_context(one)
    return kept


def answers(server: Server) -> bool:
    with suppress(httpx.TransportError), server.client() as client:
        return client.get("/health/live").status_code == 200
    return False


def test_out_of_descriptors_it_goes_on_and_recovers(patient: Server) -> None:
    """Requirement 53: who is there is served, who comes waits, and then all is as before."""
    assert patient.process is not None
    pid = patient.process.pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with patient.client() as client, ExitStack() as crowd:
        assert client.get("/health/live").status_code == 200
        used = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 8, usual[1]))
        try:
            for _ in range(40):
                crowd.enter_context(socket.create_connection(("127.0.0.1", patient.port)))
            time.sleep(1.5)
            assert client.get("/health/live").status_code == 200
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
        crowd.close()
        wait_for(lambda: answers(patient), 15, "an answer")
        assert finished(client, make(client)["id"])["status"] == "completed"


def test_a_second_signal_ends_it_at_once(patient: Server) -> None:
    """Requirement 50; the last test of this server."""
    assert patient.process is not None
    with patient.client() as client:
        patient.fault("slow", seconds=0.3)
        job = make(client, num_frames=1452)
        wait_for(lambda: client.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
        children = patient.children()
    patient.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert patient.process.poll() is None  # within the grace
    began = time.monotonic()
    patient.process.send_signal(signal.SIGTERM)
    patient.process.wait(10)
    assert time.monotonic() - began < 5
    assert not any(Path(f"/proc/{child}").exists() for child in children)
