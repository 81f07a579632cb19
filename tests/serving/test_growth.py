"""What a chunk costs late in an hour of video: as much as early. Work is counted, not timed."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import queue
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helios.media import FragmentEncoder
from helios.pipeline import Chunk, Pipeline
from helios.pipeline.session import StreamState
from helios.serving import Limits, ServeConfig, protocol
from helios.serving.journal import Record
from helios.serving.live.connection import LiveConnection
from helios.serving.live.recording import Recording
from helios.serving.live.session import Session
from helios.serving.service import Service
from helios.serving.store import new_id
from helios.serving.worker.engine import Engine
from helios.serving.worker.streams import MOST_BORDERS

from .harness import QUICK

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
soak = importlib.import_module("soak_sessions")

EVERY = soak.EVERY
EARLY, LATE = 460, 2460
"""The first chunk of two windows of 20, well after the oldest border was given up for a new one."""
WINDOW = 20
PICTURE = "data:image/jpeg;base64," + "A" * 4000


class Work:
    """Counts every step that Python takes, and every byte that becomes JSON."""

    def __init__(self) -> None:
        self.steps = 0
        self.bytes = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count in this thread, in the block."""
        dumps = json.dumps

        def counted_dumps(*args: Any, **values: Any) -> str:
            text = dumps(*args, **values)
            self.bytes += len(text)
            return text

        json.dumps = counted_dumps
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(None)
            json.dumps = dumps

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        self.steps += 1
        return self._trace


def test_the_counter_sees_what_grows() -> None:
    """Otherwise the tests below would prove nothing."""
    seen = []
    for length in (100, 200):
        work, values = Work(), list(range(length))
        with work.counted():
            json.dumps([value for value in values if value])
        seen.append((work.steps, work.bytes))
    assert seen[1][0] > 1.8 * seen[0][0]
    assert seen[1][1] > 1.8 * seen[0][1]


# -------------------------------------------------------------------------------- the worker


class Line:
    """A channel that keeps nothing but the length of what was said."""

    def __init__(self) -> None:
        self.said = 0

    def send(self, message: dict[str, Any], body: bytes = b"") -> None:
        self.said += len(json.dumps(message)) + len(body)


@pytest.fixture
def engine(
    make_pipeline: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> tuple[Engine, Line]:
    """An engine whose model, decoder and encoder cost nothing; all else is real."""
    pipeline, line = make_pipeline(), Line()
    frames = np.zeros((33, 32, 48, 3), np.uint8)

    def advance(_: object, state: StreamState, generator: Any, texts: Any) -> Any:
        track, history = state.track, state.history
        assert track is not None
        texts.at(state.index, track)
        window = history.window().frames
        history = history.append(window[:, :, :1].expand(-1, -1, 9, -1, -1).clone())
        values = {"random": generator.get_state(), "track": track, "drift": None}
        after = StreamState(index=state.index + 1, history=history, **values)
        latents = torch.zeros(16, 9, 4, 6)
        prompt = track.at(state.index)
        made = Chunk(
            index=state.index, frames=frames, latents=latents, prompt=prompt, timings={"total": 0.1}
        )
        return made, after

    monkeypatch.setattr(pipeline, "advance", advance)
    monkeypatch.setattr(FragmentEncoder, "encode", lambda self, frames: b"fragment")
    monkeypatch.setattr("helios.serving.worker.engine.thumbnail", lambda chunk: PICTURE)
    channel: Any = line
    return Engine(pipeline, channel, borders=1 << 30), line


def test_a_late_chunk_costs_a_worker_as_much_as_an_early_one(engine: tuple[Engine, Line]) -> None:
    worker, line = engine
    request = {name: value for name, value in QUICK.items() if name != "num_frames"}
    worker._do_open("a", request, None, {}, None)
    stream = worker._streams["a"]
    seen = {}
    for chunk in range(LATE + WINDOW):
        if chunk in (EARLY, LATE):
            gc.collect()
            objects, work, said = len(gc.get_objects()), Work(), line.said
        if chunk % EVERY == 0 and chunk:
            worker._do_prompt("a", f"a {('red', 'blue', 'green')[chunk // EVERY % 3]} cone", 3)
        counting = EARLY <= chunk < EARLY + WINDOW or chunk >= LATE
        with work.counted() if counting else _nothing():
            worker._make(stream)
            while True:
                try:
                    worker._encoding.get_nowait()()
                except queue.Empty:
                    break
            worker._do_taken("a")
        if chunk + 1 in (EARLY + WINDOW, LATE + WINDOW):
            seen[chunk + 1 - WINDOW] = objects, work.steps, line.said - said
    assert len(stream.session.kept) == MOST_BORDERS + 1
    early, late = seen[EARLY], seen[LATE]
    assert abs(late[0] - early[0]) < 200  # objects
    assert late[1] == pytest.approx(early[1], rel=0.02)
    assert late[2] == pytest.approx(early[2], rel=0.02)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


# ------------------------------------------------------------------------- the front process


class Socket:
    """A client that takes everything at once."""

    def __init__(self) -> None:
        self.bytes = 0

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {}

    async def send_text(self, text: str) -> None:
        self.bytes += len(text)

    async def send_bytes(self, data: bytes) -> None:
        self.bytes += len(data)


async def _at_once(function: Callable[..., Any], *args: Any) -> Any:
    """``asyncio.to_thread`` in this thread, where it is counted."""
    return function(*args)


def test_a_late_chunk_costs_the_front_process_as_much_as_an_early_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncio.to_thread", _at_once)
    limits = Limits(free=0, lifetime=0)
    service = Service(ServeConfig(data=tmp_path, limits=limits))
    record = Record(new_id("session"), "session", "a")
    record.document = {"prompts": [[0, "a"]], "model": "tiny", "loras": {}}
    chunk = [0]

    async def call(op: str, **values: Any) -> dict[str, Any]:
        if op == "save":
            Path(values["path"]).write_bytes(b"state")
            return {"chunk": chunk[0]}
        assert op == "prompt"
        soonest = chunk[0] + 1
        return {"chunk": soonest, "soonest": soonest, "superseded": None, "warnings": []}

    settings = {"fps": 24, "width": 48, "height": 32, "num_frames": None}
    info = {"settings": settings, "warnings": [], "mime": "", "chunk": 0}
    quiet = {"call": call, "taken": lambda: None, "tell": lambda op, **values: None}
    stream: Any = SimpleNamespace(info=info, header=b"header", **quiet)
    socket: Any = Socket()

    def said(number: int) -> dict[str, Any]:
        return {
            "event": "chunk", "chunk": number, "start_frame": number * 33, "frames": 33,
            "prompt": "a red ball", "timings": {"made": 0.05, "total": 0.05, "encode": 0.01},
            "thumbnail": PICTURE, "landed": None, "kept": [max(0, number - 400), number],
            "sharing": 1,
        }  # fmt: skip

    async def play() -> dict[int, tuple[int, int, int, int]]:
        recording = Recording.begin(service.store.make(record.id), stream.header)
        session = Session(service, record, stream, recording, None, None)
        service.sessions.live[record.id] = session
        connection = LiveConnection(service, socket, "a")
        connection._session = session
        seen = {}
        for number in range(LATE + WINDOW):
            chunk[0] = number
            if number in (EARLY, LATE):
                gc.collect()
                objects, work, sent = len(gc.get_objects()), Work(), socket.bytes
            counting = EARLY <= number < EARLY + WINDOW or number >= LATE
            with work.counted() if counting else _nothing():
                await connection._chunk(session, said(number), bytes(1000))
            if number % EVERY == 0 and number:
                wish = protocol.SessionPrompt(type="session.prompt", prompt=f"a cone {number}")
                await connection._prompt(wish)
                await asyncio.sleep(0)
            if number + 1 in (EARLY + WINDOW, LATE + WINDOW):
                counts = objects, work.steps, work.bytes, socket.bytes - sent
                seen[number + 1 - WINDOW] = counts
        assert len(list(session.folder.iterdir())) < 16
        assert len(recording) == LATE + WINDOW
        return seen

    seen = asyncio.run(play())
    service.journal.close()
    early, late = seen[EARLY], seen[LATE]
    assert abs(late[0] - early[0]) < 200  # objects; one small list for every prompt
    for before, after in zip(early[1:], late[1:], strict=True):
        assert after == pytest.approx(before, rel=0.02)


# ------------------------------------------------------------------------------- the measure


def test_the_windows_of_the_soak_are_those_of_the_specification() -> None:
    windows = soak.Windows(20_946)
    chunks = list(range(20_946))
    assert windows.end(chunks) == chunks[-1000:]
    assert windows.middle(chunks)[0] == 500
    # What is looked at every 50 chunks belongs to the chunks before the look, all of them.
    looks = list(range(50, 20_947, 50))
    assert windows.end(looks, 50)[0] == 20_000
    assert windows.middle(looks, 50)[0] == 550
    assert windows.ratio([1.0] * 10_000 + [1.2] * 10_946) == pytest.approx(1.2)


def test_what_slows_all_down_is_told_from_what_grows() -> None:
    windows = soak.Windows(2619)
    slower = [1.0 if n < 1600 else 1.3 for n in range(2619)]
    looks = [slower[n - 1] for n in range(50, 2620, 50)]
    assert windows.ratio(slower) / windows.ratio(looks, 50) == pytest.approx(1)
    growing = [1 + n / 2619 for n in range(2619)]
    assert windows.ratio(growing) / windows.ratio([1.0] * 52, 50) > 1.3
