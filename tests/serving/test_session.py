"""Sessions that lose their worker at any moment go on bit for bit."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from helios.pipeline import Pipeline, load
from helios.serving.journal import Record
from helios.serving.live.session import KEPT_STATES, Session, state_name, states_in

from .harness import PROMPT, Live, Server, running, wait_for
from .test_live import OTHER, offline, shown


@pytest.fixture(scope="module")
def reference(tiny_random: Path) -> Pipeline:
    return load(tiny_random, "cpu", "float32")


def kill_worker(server: Server, live: Live) -> None:
    """The worker dies; the client is told, and a new one is ready."""
    os.kill(server.worker(), signal.SIGKILL)
    while live.receive()["type"] != "error":
        pass
    assert live.messages[-1]["error"]["code"] == "worker_crashed"
    assert live.until("session.done")["reason"] == "worker"
    with server.client() as client:
        wait_for(lambda: client.get("/health/ready").status_code == 200, 60, "a new worker")


def states_of(folder: Path) -> Iterator[bytes]:
    """What lies on disk of a session's states, of which one may go while the next is read."""
    for path in folder.glob("state-*"):
        with suppress(FileNotFoundError):
            yield path.read_bytes()


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_worker_that_dies_with_the_first_chunks_costs_nothing(
    server: Server, reference: Pipeline, tmp_path: Path, chunks: int
) -> None:
    """Nobody saved anything; the client may know of no chunk yet."""
    server.fault("slow", seconds=0.1)
    try:
        with server.live() as live:
            session = live.start(num_frames=99, ahead=1)["session"]
            for _ in range(chunks):
                live.until("video.chunk")
            kill_worker(server, live)
            live.send("session.resume", session=session, have=0)
            live.until("session.created")
            begun = len(live.media)
            live.until("session.done")
    finally:
        server.fault("slow", seconds=0)
    made = [m["chunk"] for m in live.of("video.chunk") if m["stream"] > begun]
    assert made == [0, 1, 2]
    film = shown(live.film(begun + 1), tmp_path / "live.mp4")
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", num_frames=99))


def test_states_written_on_the_way_stay_few_and_saved_ones_stay(tmp_path: Path) -> None:
    record = Record("session_" + "0" * 32, "session", "a")
    record.document = {"pinned": [2]}
    now = [0]

    async def call(op: str, path: str, chunk: int | None) -> dict[str, int]:
        assert op == "save"
        assert chunk is None
        Path(path).write_bytes(b"state")
        return {"chunk": now[0]}

    info = {"settings": {}, "warnings": [], "mime": "", "chunk": 0}
    stream: Any = SimpleNamespace(info=info, header=b"", call=call)
    service: Any = SimpleNamespace(store=SimpleNamespace(folder=lambda name: tmp_path))
    recording: Any = None

    async def play() -> None:
        session = Session(service, record, stream, recording, None, None)
        for now[0] in range(20):
            await session.autosave()

    asyncio.run(play())
    assert states_in(tmp_path) == [2, *range(20 - KEPT_STATES, 20)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        state_name(n) for n in states_in(tmp_path)
    ]


def test_a_change_in_between_is_refused_with_the_loss_and_taken_afterwards(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    server.fault("slow", seconds=0.1)
    try:
        with server.live() as live:
            session = live.start(num_frames=132, ahead=1)["session"]
            live.until("video.chunk")
            kill_worker(server, live)
            for event in ("one", "two"):
                live.send("session.prompt", prompt=OTHER, event_id=event)
                while live.receive()["type"] != "error":
                    pass
                error = live.messages[-1]["error"]
                assert (error["code"], error["event_id"]) == ("worker_crashed", event)
            live.send("session.resume", session=session, have=0, ahead=2)
            live.until("video.start")
            live.send("session.prompt", prompt=OTHER, chunk=3, transition_chunks=0)
            assert live.until("prompt.queued")["chunk"] == 3
            for chunk in range(3):
                live.send("session.played", chunk=chunk)
            assert live.until("session.done")["reason"] == "complete"
    finally:
        server.fault("slow", seconds=0)
    film = shown(live.film(len(live.media)), tmp_path / "live.mp4")
    track = [(0, PROMPT), (3, OTHER)]
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", track, num_frames=132))


def test_a_change_that_was_accepted_outlives_the_worker(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    """Nobody asks for it again: it is part of the state that was written with it."""
    with server.live() as live:
        session = live.start(num_frames=132, ahead=1)["session"]
        live.until("video.chunk")
        live.until("video.chunk")
        folder = server.data / "sessions" / session
        live.send("session.prompt", prompt=OTHER, chunk=3, transition_chunks=0)
        live.until("prompt.queued")

        wait_for(lambda: OTHER.encode() in b"".join(states_of(folder)), 30, "the state")
        kill_worker(server, live)
        live.send("session.resume", session=session, have=0)
        live.until("session.done")
    film = shown(live.film(len(live.media)), tmp_path / "live.mp4")
    track = [(0, PROMPT), (3, OTHER)]
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", track, num_frames=132))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_changed_outlives_the_server(
    number: signal.Signals, tiny_random: Path, reference: Pipeline, tmp_path: Path
) -> None:
    """Whether it is killed or told to stop: prompts, adapters and length are those asked for."""
    with running(tiny_random, tmp_path / "data", ("--limit", "spares=0")) as server:
        with server.live() as live:
            session = live.start(num_frames=66, ahead=1)["session"]
            live.until("session.done")
            live.send("session.extend", num_frames=66)
            live.until("session.extended")
            live.send("session.prompt", prompt=OTHER, chunk=3, transition_chunks=0)
            live.until("prompt.queued")
            folder = server.data / "sessions" / session
            if number == signal.SIGKILL:
                wait_for(lambda: OTHER.encode() in b"".join(states_of(folder)), 30, "the state")
            code = server.stop(number)
        assert code == (0 if number == signal.SIGTERM else -number)
        server.start()
        with server.client() as client:
            kept = client.get(f"/v1/sessions/{session}").json()
        assert kept["status"] == "parked"
        assert kept["prompts"] == [[0, PROMPT], [3, OTHER]]
        assert kept["settings"]["num_frames"] == 132
        with server.live() as live:
            live.send("session.resume", session=session, have=0)
            live.until("session.done")
        said = server.log.read_text()
        assert "Exception in ASGI" not in said
        assert "without completing handshake" not in said
    film = shown(live.film(), tmp_path / "live.mp4")
    track = [(0, PROMPT), (3, OTHER)]
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", track, num_frames=132))


def test_a_refused_handshake_is_no_failure_of_the_server(server: Server) -> None:
    with pytest.raises(InvalidStatus):
        server.live(headers={"Origin": "https://evil.example"})
    with server.client() as client:
        assert client.get("/health/live").status_code == 200
    assert "without completing handshake" not in server.log.read_text()
