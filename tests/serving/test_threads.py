"""The front process has its threads from the start; load adds none (soak S1)."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helios.serving.threads import PAGE_THREADS, THREADS, make_threads

from .harness import Server, finished, make


def test_all_are_made_at_once_and_more_work_makes_no_more() -> None:
    async def play() -> tuple[int, int, set[str]]:
        make_threads()
        before = threading.active_count()

        def work() -> str:
            time.sleep(0.01)
            return threading.current_thread().name

        names = await asyncio.gather(*(asyncio.to_thread(work) for _ in range(10 * THREADS)))
        return before, threading.active_count(), set(names)

    alone = threading.active_count()
    before, after, names = asyncio.run(play())
    assert before == after == alone + THREADS
    assert len(names) == THREADS
    assert threading.active_count() == alone


def test_a_thread_that_is_refused_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, given = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if len(given) == THREADS - 1:
            raise RuntimeError("can't start new thread")
        given.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)

    async def play() -> None:
        make_threads()

    with pytest.raises(RuntimeError, match="new thread"):
        asyncio.run(play())
    for thread in given:
        thread.join(0.1)  # none waits for those that never came


def test_load_adds_no_threads_to_the_front_process(server: Server) -> None:
    """Downloads, the page and jobs, many at once; what is measured is what the system counts."""
    assert server.process is not None
    tasks = Path(f"/proc/{server.process.pid}/task")

    def threads() -> int:
        return len(list(tasks.iterdir()))

    with server.client() as client:
        name = finished(client, make(client, num_frames=330)["id"])["id"]
    before, most = threads(), 0

    def visit(number: int) -> None:
        nonlocal most
        with server.client() as own:
            for path in (f"/v1/videos/{name}/content", "/static/app.js", "/static/style.css"):
                assert own.get(path).status_code == 200
            if number % 4 == 0:
                assert finished(own, make(own)["id"])["status"] == "completed"
        most = max(most, threads())

    with ThreadPoolExecutor(12) as visitors:
        list(visitors.map(visit, range(48)))
    assert max(most, threads()) <= before + PAGE_THREADS
