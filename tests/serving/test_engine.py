"""The worker's engine in this process, with a front that only listens."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helios.pipeline import Pipeline
from helios.serving.worker.engine import Engine
from helios.serving.worker.streams import MOST_WAITING
from helios.serving.worker.transport import Message

from .harness import QUICK, wait_for


class Front:
    """The other end of the channel: what was sent to it, and a way to ask."""

    def __init__(self) -> None:
        self.heard: list[tuple[Message, bytes]] = []
        self.asked: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.calls = 0

    def send(self, message: Message, body: bytes = b"") -> None:
        self.heard.append((message, body))

    def receive(self) -> tuple[Message, bytes]:
        return self.asked.get(), b""

    def ask(self, op: str, **values: Any) -> Message:
        """Its answer."""
        self.calls += 1
        call = self.calls
        self.asked.put({"op": op, "call": call, **values})
        wait_for(lambda: self.answer(call) is not None, 30, op)
        answer = self.answer(call)
        assert answer is not None
        assert "code" not in answer, answer
        return answer

    def answer(self, call: int) -> Message | None:
        heard = (message for message, _ in list(self.heard))
        return next((m for m in heard if m["event"] == "answer" and m["call"] == call), None)

    def open(self, name: str) -> None:
        values = {"request": QUICK | {"num_frames": 33 * 40}, "media": None, "loras": {}}
        self.ask("open", stream=name, until=None, **values)

    @property
    def chunks(self) -> list[str]:
        """Whose chunks came, in order."""
        return [m["stream"] for m, _ in list(self.heard) if m["event"] == "chunk"]


@pytest.fixture
def front(make_pipeline: Callable[..., Pipeline]) -> Iterator[Front]:
    front: Any = Front()
    engine = Engine(make_pipeline(), front, borders=1 << 20)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    yield front
    front.asked.put({"op": "shutdown"})
    thread.join(30)
    assert not thread.is_alive()


def settle(front: Front, count: int) -> None:
    """So many chunks come, however slow the machine is, and no more."""
    wait_for(lambda: len(front.chunks) >= count, 60, f"chunk {count}")
    time.sleep(0.6)
    assert len(front.chunks) == count


def test_a_stream_pauses_when_two_chunks_wait_and_goes_on_when_one_is_taken(front: Front) -> None:
    """Requirement 41."""
    front.open("a")
    assert MOST_WAITING == 2
    settle(front, 2)
    for taken in (1, 2):
        front.asked.put({"op": "taken", "stream": "a"})
        settle(front, MOST_WAITING + taken)


def test_who_takes_nothing_costs_others_no_more_than_what_may_wait_for_it(front: Front) -> None:
    """Requirement 41: from then on every chunk is the other's, one after the other."""
    front.open("slow")
    settle(front, MOST_WAITING)
    front.open("other")
    for made in range(1, 8):
        wait_for(lambda made=made: front.chunks.count("other") >= made, 30, "a chunk")  # type: ignore[misc]
        front.asked.put({"op": "taken", "stream": "other"})
    assert front.chunks.count("slow") == MOST_WAITING
    assert set(front.chunks[MOST_WAITING:]) == {"other"}


def test_two_who_take_everything_are_served_in_turns(front: Front) -> None:
    front.open("a")
    front.open("b")
    seen = 0
    while seen < 20:
        wait_for(lambda: len(front.chunks) > seen, 30, "a chunk")  # noqa: B023
        for name in front.chunks[seen:]:
            front.asked.put({"op": "taken", "stream": name})
            seen += 1
    later = front.chunks[4:20]
    assert abs(later.count("a") - later.count("b")) <= 2
    assert "a,a,a" not in ",".join(later)


def test_a_state_is_not_written_for_a_session_that_was_deleted(front: Front, tmp_path: Any) -> None:
    front.open("a")
    gone = tmp_path / "session"
    front.calls += 1
    call = front.calls
    command = {"op": "save", "call": call, "stream": "a", "path": str(gone / "s.safetensors")}
    front.asked.put(command | {"chunk": None})
    wait_for(lambda: front.answer(call) is not None, 30, "the answer")
    answer = front.answer(call)
    assert answer is not None
    assert answer["code"] == "insufficient_storage"
    assert not gone.exists()
