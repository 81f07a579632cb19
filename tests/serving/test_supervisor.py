"""Requirement 48: a worker without a sign of life is replaced, and nothing it still says counts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from helios.serving import Limits, ServeConfig
from helios.serving.errors import ApiError
from helios.serving.metrics import Metrics
from helios.serving.worker.supervisor import StreamHandle, WorkerProcess


class End:
    """A process that is only told to die."""

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    async def bury(self) -> int:
        await asyncio.sleep(0)
        return -9

    def tell(self, message: dict[str, Any]) -> None:
        self.told = message


def a_worker() -> tuple[WorkerProcess, Any]:
    config = ServeConfig(limits=Limits(watchdog=60))
    spares: Any = None
    worker = WorkerProcess(config, "tiny", 0, Metrics(), spares, lambda: None)
    end: Any = End()
    worker._end, worker.ready = end, True
    return worker, end


def chunk(stream: str) -> dict[str, Any]:
    return {"event": "chunk", "stream": stream, "frames": 33, "timings": {"made": 1.0}}


@pytest.mark.parametrize(
    ("silent", "ready", "killed"), [(59, True, 0), (61, True, 1), (61, False, 0)]
)
def test_silence_ends_a_worker_that_was_ready(
    monkeypatch: pytest.MonkeyPatch, silent: float, ready: bool, killed: bool
) -> None:
    """One that is still loading its model has nothing to say."""
    worker, end = a_worker()
    worker.ready = ready
    now = time.monotonic() + silent
    monkeypatch.setattr("helios.serving.worker.supervisor.time.monotonic", lambda: now)
    worker.watch()
    assert end.killed == killed
    assert worker._loss == ("timeout" if killed else "worker_crashed")


def test_what_an_old_life_still_says_reaches_nobody() -> None:
    async def play() -> None:
        worker, _ = a_worker()
        old = StreamHandle(worker, "video_x/1")
        worker.streams[old.name] = old
        worker._loss = "timeout"
        await worker._bury()
        message, _ = old.events.get_nowait()
        assert (message["event"], message["code"]) == ("failed", "timeout")
        # The same video again, by the next process.
        new = StreamHandle(worker, "video_x/2")
        worker.streams[new.name] = new
        for stream in (old.name, "video_x", "", new.name + "0"):
            worker._hear(chunk(stream), b"late")
            worker._hear({"event": "ended", "stream": stream}, b"")
        assert old.events.empty()
        assert new.events.empty()
        assert worker._made == 0
        worker._hear(chunk(new.name), b"own")
        assert new.events.get_nowait()[1] == b"own"

    asyncio.run(play())


def test_calls_of_an_old_life_fail_with_its_reason() -> None:
    async def play() -> None:
        worker, _ = a_worker()
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        worker._calls[7] = waiting
        worker._loss = "timeout"
        await worker._bury()
        with pytest.raises(Exception, match="replaced"):
            await waiting
        worker._hear({"event": "answer", "call": 7, "chunk": 3}, b"")  # too late

    asyncio.run(play())


def test_whoever_asks_while_a_process_is_buried_is_told_why() -> None:
    """A change that comes between two lives is refused with the loss, never as a new mistake."""

    async def play() -> None:
        worker, end = a_worker()
        stream = StreamHandle(worker, "session_x/1")
        worker.streams[stream.name] = stream
        asked = asyncio.create_task(stream.call("prompt", prompt="a"))
        await asyncio.sleep(0)
        assert end.told["op"] == "prompt"
        buried = asyncio.Event()

        async def bury() -> int:
            await buried.wait()
            return -9

        end.bury = bury
        burial = asyncio.create_task(worker._bury())
        await asyncio.sleep(0)
        calls = [asked, asyncio.create_task(stream.call("prompt", prompt="b"))]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [getattr(answer, "code", None) for answer in answers] == ["worker_crashed"] * 2
        assert stream.events.get_nowait()[0]["event"] == "failed"
        buried.set()
        await burial
        # The next life does not know the stream: still the same answer.
        worker._end, worker.ready, worker._loss = End(), True, "worker_crashed"  # type: ignore[assignment]
        with pytest.raises(ApiError) as caught:
            await stream.call("stop")
        assert caught.value.code == "worker_crashed"

    asyncio.run(play())
