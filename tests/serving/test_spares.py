"""Processes that wait for a model: there when they are needed, and gone with the server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from helios.serving import Limits, ServeConfig
from helios.serving.metrics import Metrics
from helios.serving.worker.spares import Spares, WorkerEnd
from helios.serving.worker.supervisor import BACKOFF, MOST_CRASHES, WorkerProcess


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def with_spares(count: int, play: Callable[[Spares], Awaitable[None]]) -> None:
    async def scene() -> None:
        spares = Spares(count)
        try:
            await play(spares)
        finally:
            await spares.stop()

    asyncio.run(scene())


def test_the_one_that_waits_is_taken_and_runs_like_any_other() -> None:
    async def play(spares: Spares) -> None:
        spares.refill()
        await until(lambda: len(spares.pids) == 1)
        (pid,) = spares.pids
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        end = await spares.take()
        assert end.process.pid == pid
        assert end.alive
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        assert spares.pids == []
        await end.bury()
        assert not exists(pid)

    with_spares(1, play)


def test_after_a_death_the_next_one_takes_its_share() -> None:
    async def play(spares: Spares) -> None:
        spares.refill(soon=True)
        await until(lambda: len(spares.pids) == 1)
        # Not idle, but as whoever started the tests.
        assert os.sched_getscheduler(spares.pids[0]) == os.sched_getscheduler(0)

    with_spares(1, play)


def test_one_that_died_while_it_waited_is_not_given_out() -> None:
    async def play(spares: Spares) -> None:
        spares.refill()
        await until(lambda: len(spares.pids) == 1)
        (pid,) = spares.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not spares._ready[0].alive)
        end = await spares.take()
        assert end.process.pid != pid
        assert end.alive
        await end.bury()

    with_spares(1, play)


def test_none_wait_where_none_are_wanted() -> None:
    async def play(spares: Spares) -> None:
        spares.refill()
        await asyncio.sleep(0.05)
        assert spares.pids == []

    with_spares(0, play)


def test_all_end_with_the_server() -> None:
    pids: list[int] = []

    async def play(spares: Spares) -> None:
        spares.refill()
        await until(lambda: len(spares.pids) == 2)
        pids.extend(spares.pids)

    with_spares(2, play)
    assert not any(exists(pid) for pid in pids)


@pytest.mark.parametrize(("useful", "waits"), [(True, BACKOFF[:1] * 4), (False, BACKOFF[:4])])
def test_it_waits_longer_after_lives_in_which_nothing_was_made(
    useful: bool, waits: tuple[float, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Requirement 47: 1, 2, 4 … 30 s, and down with a reason after five deaths in five minutes."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def live(self: WorkerProcess) -> None:
        self._made = int(useful)

    monkeypatch.setattr("helios.serving.worker.supervisor.asyncio.sleep", sleep)
    monkeypatch.setattr(WorkerProcess, "_live", live)
    config = ServeConfig(data=tmp_path, limits=Limits())
    metrics = Metrics()
    worker = WorkerProcess(config, "tiny", 0, metrics, Spares(0), lambda: None)
    asyncio.run(asyncio.wait_for(worker.run(), 5))
    assert tuple(slept) == waits
    assert worker.restarts == MOST_CRASHES
    assert "died 5 times" in worker.reason


def test_a_process_that_was_told_nothing_ends_with_its_parent() -> None:
    async def scene() -> None:
        end = await WorkerEnd.start()
        end.writer.close()  # as when the front process is gone
        # It looks up when its libraries are loaded, which takes long on a busy machine.
        assert await asyncio.wait_for(end.process.wait(), 240) == 0

    asyncio.run(scene())
