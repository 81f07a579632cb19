"""Bounds that need no model: keys, queues, rooms, records and logs."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helios.serving import Limits, ServeConfig
from helios.serving.errors import ApiError
from helios.serving.jobs.job import Job
from helios.serving.journal import Journal, Record
from helios.serving.logs import log
from helios.serving.server import _Connections, _listen
from helios.serving.service import Service
from helios.serving.store import new_id
from helios.serving.web.security import FAILURE_SECONDS, FAILURES, Guard

KEY = "k" * 40


def refusal(do: Callable[[], Any], status: int, code: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        do()
    assert (caught.value.status, caught.value.code) == (status, code)
    return caught.value


@pytest.fixture
def service(tmp_path: Path) -> Service:
    limits = Limits(free=0, queue=4, per_key=3, quota=10_000)
    return Service(ServeConfig(data=tmp_path / "data", limits=limits, keys={"a": KEY, "b": KEY}))


def queued(owner: str, number: int) -> Job:
    record = Record(f"{owner}{number}", "video", owner)
    record.document = {"model": "tiny", "status": "queued"}
    return Job(record)


def test_wrong_keys_are_throttled_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirement 30."""
    now = [1000.0]
    monkeypatch.setattr("helios.serving.web.security.time.monotonic", lambda: now[0])
    guard = Guard(ServeConfig(keys={"one": KEY}))
    wrong, right = {"authorization": "Bearer no"}, {"authorization": f"Bearer {KEY}"}
    for _ in range(FAILURES):
        refusal(lambda: guard.owner(wrong, "1.1.1.1"), 401, "invalid_api_key")
    for headers in (wrong, right):  # guessing on does not find out which is right
        error = refusal(lambda h=headers: guard.owner(h, "1.1.1.1"), 429, "too_many_failures")  # type: ignore[misc]
        assert "Retry-After" in error.headers
    assert guard.owner(right, "2.2.2.2") == "one"
    now[0] += FAILURE_SECONDS
    assert guard.owner(right, "1.1.1.1") == "one"


def test_answers_are_sent_at_once() -> None:
    """The event loop turns Nagle's delay off only on sockets that say they are TCP."""
    import socket

    listener = _listen(ServeConfig(port=0))
    with listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_connections_are_counted_in_all_and_by_address() -> None:
    connections = _Connections(3, 2)
    assert [connections.enter(address) for address in "aaabb"] == [True, True, False, True, False]
    connections.leave("a")
    assert connections.enter("b")
    for address in "abb":
        connections.leave(address)
    assert connections.open == {}


def test_jobs_are_made_in_turns_of_their_owners(service: Service) -> None:
    """Requirement 37: first come first served for each key, in turns between keys."""
    jobs, worker = service.jobs, SimpleNamespace(ready=True, model="tiny")
    for job in [*(queued("a", n) for n in range(4)), *(queued("b", n) for n in range(2))]:
        jobs._enqueue(job)
    order = []
    while (job := jobs._next(worker)) is not None:  # type: ignore[arg-type]
        jobs._queue.remove(job)
        order.append(job.record.id)
        time.sleep(0.001)
    assert order == ["a0", "b0", "a1", "b1", "a2", "a3"]
    worker.ready = False
    jobs._enqueue(queued("c", 0))
    assert jobs._next(worker) is None  # type: ignore[arg-type]


def test_a_queue_is_bounded_in_all_and_for_each_key(service: Service) -> None:
    jobs = service.jobs
    for number in range(3):
        jobs.check_room("a")
        jobs._enqueue(queued("a", number))
    assert "Retry-After" in refusal(lambda: jobs.check_room("a"), 429, "queue_full").headers
    jobs.check_room("b")
    jobs._enqueue(queued("b", 0))
    refusal(lambda: jobs.check_room("b"), 429, "queue_full")


def test_without_keys_one_may_fill_the_queue(tmp_path: Path) -> None:
    limits = Limits(free=0, queue=6, per_key=3)
    jobs = Service(ServeConfig(data=tmp_path / "data", limits=limits)).jobs
    for number in range(6):
        jobs.check_room("local")
        jobs._enqueue(queued("local", number))
    refusal(lambda: jobs.check_room("local"), 429, "queue_full")


def test_a_server_that_stops_accepts_nothing(service: Service) -> None:
    service.draining = True
    refusal(lambda: service.jobs.check_room("a"), 503, "server_draining")


def test_what_is_used_up_is_said_before_the_work(service: Service) -> None:
    """Requirement 24: a quota for everything together."""
    service.store.check_room()
    folder = service.store.make(new_id("file"))
    (folder / "original").write_bytes(bytes(10_001))
    service.store.measure()
    refusal(service.store.check_room, 507, "insufficient_storage")


def test_items_expire_with_their_files_unless_they_are_at_work(service: Service) -> None:
    """Requirement 24: results, uploads and sessions have a time to live."""

    async def play() -> tuple[set[str], list[str]]:
        records = {}
        for name, expires in (("old", -1.0), ("new", 60.0), ("busy", -1.0)):
            record = records[name] = Record(new_id("video"), "video", "a")
            record.document = {"status": "completed", "expires": time.time() + expires}
            service.store.make(record.id)
            await service.journal.put(record)
        service.jobs._active[records["busy"].id] = Job(records["busy"])
        await service._tidy()
        names = {record.id: name for name, record in records.items()}
        left = [names[path.name] for path in (service.store.root / "videos").iterdir()]
        return {names[name] for name in service.journal.names()}, left

    known, left = asyncio.run(play())
    assert known == set(left) == {"new", "busy"}


def filled(path: Path, count: int) -> list[str]:
    """A journal of so many records, as a process that was killed leaves it."""
    import multiprocessing

    def write() -> None:
        import os

        async def put() -> None:
            journal = Journal(path)
            for number in range(count):
                record = Record(f"video_{number:032x}", "video", "a", number)
                record.document = {"number": number}
                await journal.put(record)
            os._exit(0)  # nothing is closed

        asyncio.run(put())

    child = multiprocessing.get_context("fork").Process(target=write)
    child.start()
    child.join(30)
    return [f"video_{number:032x}" for number in range(count)]


def opened(path: Path) -> list[str]:
    journal = Journal(path)
    found = sorted(journal.names())
    journal.close()
    return found


@pytest.mark.parametrize("lost", [0, 1, 500, 4200, 9000])
def test_a_journal_torn_anywhere_keeps_what_was_written_before(tmp_path: Path, lost: int) -> None:
    """Requirement 51: the last records may be gone with the tear, none before them."""
    path = tmp_path / "journal.sqlite"
    names = filled(path, 20)
    wal = path.with_name("journal.sqlite-wal")
    data = wal.read_bytes()
    wal.write_bytes(data[: len(data) - lost])
    found = opened(path)
    assert found == names[: len(found)]
    assert len(found) >= 20 - 1 - lost // 4096


def test_nobody_is_told_of_a_change_before_it_is_on_the_disk(tmp_path: Path) -> None:
    """A video that was complete once is complete after a crash too."""
    gate = threading.Event()

    async def change() -> None:
        journal = Journal(tmp_path / "journal.sqlite")
        record = Record("video_1", "video", "a", document={"status": "in_progress"})
        await journal.put(record)
        journal._thread.submit(gate.wait)
        putting = asyncio.create_task(journal.put(record, status="completed"))
        await asyncio.sleep(0.05)
        assert record.document["status"] == "in_progress"
        gate.set()
        await putting
        assert record.document["status"] == "completed"
        journal.close()
        again = Journal(tmp_path / "journal.sqlite").get("video_1")
        assert again is not None
        assert again.document == record.document

    asyncio.run(change())


def test_a_record_that_cannot_be_written_is_as_before_or_was_never_there(tmp_path: Path) -> None:
    async def change() -> None:
        journal = Journal(tmp_path / "journal.sqlite")
        record = Record("video_1", "video", "a", document={"status": "queued"})
        await journal.put(record)
        journal._thread.submit(lambda: journal._file.execute("PRAGMA query_only = ON")).result()
        for one in (record, Record("video_2", "video", "a")):
            with pytest.raises(OSError, match="journal cannot be written"):
                await journal.put(one, status="completed")
        assert journal.names() == {"video_1"}
        assert record.document == {"status": "queued"}
        journal.close()

    asyncio.run(change())


def test_a_damaged_record_costs_itself_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import sqlite3

    path = tmp_path / "journal.sqlite"
    names = filled(path, 5)
    with sqlite3.connect(path) as file:
        file.execute("UPDATE records SET document = ? WHERE id = ?", ("{torn", names[2]))
    file.close()
    assert opened(path) == names[:2] + names[3:]
    assert json.loads(capfd.readouterr().err)["record"] == names[2]


def test_no_text_forges_a_record_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Requirement 20, and 29: neither keys nor prompts are written."""
    evil = 'x\n{"event": "forged"}\r\x1b[2J\u2028\x00'
    log("request", detail=evil, prompt="a secret", key=KEY, authorization=KEY, ticket="t")
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert text.isascii()
    assert all(character >= " " for character in text[:-1])
    record = json.loads(text)
    assert record["detail"] == evil
    assert not {"prompt", "key", "authorization", "ticket"} & set(record)
