"""Load on a running server, in the short form of the reliability specification, section 5.2.

    python benchmarks/soak.py --seconds 60 --report docs/results/soak.json
    python benchmarks/soak.py --only S1,S4

Starts ``helios serve`` on a small random model and runs S0 to S4, S6, S7, S12 and S8, one after the
other; prints a table and exits with 1 if a target is missed. S0 is the test of the harness: it must
see a leak that is injected. ``--seconds 1800 --chunks 20946 --sessions 5000`` give the long forms.
Limits that the load would meet are raised and recorded; beside each figure of time stands the same
figure of an echo that does nothing (``control``), and the load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from soak_server import (
    BODY,
    LIMITS,
    MIB,
    Control,
    Figures,
    Load,
    Server,
    Visits,
    chunks_of,
    percentile,
    slope,
    small_model,
)

ENDLESS = {key: value for key, value in BODY.items() if key != "num_frames"}
ORDER = ("S0", "S1", "S2", "S3", "S4", "S6", "S7", "S12", "S8")


class Soak(Load):
    """The scenarios; each gives figures and whether its targets are met."""

    def __init__(self, server: Server, seconds: float, chunks: int, sessions: int) -> None:
        super().__init__(server)
        self.seconds = seconds
        self.chunks = chunks
        self.sessions = sessions

    async def s0(self) -> Figures:
        """Whether a leak of 1 MiB a chunk would be seen."""
        # At first it fills what the allocator keeps for large blocks that come and go.
        chunks, memory = 200, []
        async with self.socket() as socket:
            await self.fault("leak", seconds=1)
            await socket.send(json.dumps({"type": "session.start"} | ENDLESS))
            async for message in chunks_of(socket):
                memory.append(self.server.usage()["rss"] / MIB)
                if message["chunk"] == chunks:
                    break
            await self.fault("leak", seconds=0)
        seen = memory[chunks // 2 :]
        rise, interval = slope(list(map(float, range(len(seen)))), seen)
        return {
            "seen_mib_per_chunk": [round(rise, 2), round(interval, 2)],
            "met": abs(rise - 1) < 0.2,
        }

    async def s1(self) -> Figures:
        """Clients that create, poll, download and delete."""
        await self._rate(64)  # threads are made when they are first needed
        await self.drain_queue()
        before = self.server.usage()
        visits = Visits(self, self.seconds)
        await visits.run()
        await self.settled()
        await asyncio.sleep(11)  # connections are kept for ten seconds
        after = self.server.usage()
        found = visits.figures() | {
            "files_growth": after["files"] - before["files"],
            "threads_growth": after["threads"] - before["threads"],
        }
        rise, interval = found["rss_mib_per_min"]
        good = found["answers_5xx"] == 0 and found["outcomes"] == {"completed": visits.accepted}
        good = good and found["status_p99_s"] < 0.1 and rise - interval < 1
        return found | {"met": good and found["files_growth"] <= 5 >= found["threads_growth"]}

    async def s8(self) -> Figures:
        """S1 while the worker is killed; fewer times than it takes to be given up."""
        recoveries: list[float] = []
        visits = Visits(self, self.seconds)

        async def kill() -> None:
            for _ in range(3):
                await asyncio.sleep(self.seconds / 8)
                began = await self._kill_worker()
                while (await self.client.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.05)
                recoveries.append(time.monotonic() - began)

        await asyncio.gather(visits.run(), kill())
        found = visits.figures()
        ended = sum(found["outcomes"].values())
        known = set(found["outcomes"]) <= {"completed", "worker_crashed"}
        refused = visits.statuses[503]  # what is asked while no worker is there
        worst = max(recoveries, default=99.0)
        return {
            "kills": len(recoveries),
            "recovery_max_s": round(worst, 2),
            **{key: found[key] for key in ("accepted", "outcomes", "status_p99_s")},
            "answers_5xx_beside_503": found["answers_5xx"] - refused,
            "met": worst < 5
            and known
            and ended == visits.accepted
            and found["answers_5xx"] == refused,
        }

    async def _kill_worker(self) -> float:
        worker = self.server.worker()
        assert worker is not None
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        began = time.monotonic()
        while (await self.client.get("/health/ready")).status_code == 200:
            await asyncio.sleep(0.02)
        return began

    async def s2(self) -> Figures:
        """Far more posts than can be taken: refused at once, what is accepted is done."""
        unloaded = await self._rate(16)
        times: list[float] = []
        accepted: list[str] = []
        refusals: Counter[int] = Counter()
        began = time.monotonic()
        until = began + self.seconds / 2

        async def one() -> None:
            async with self.visitor() as client:
                while time.monotonic() < until:
                    asked = time.monotonic()
                    answer = await client.post("/v1/videos", json=BODY)
                    if answer.status_code == 200:
                        accepted.append(answer.json()["id"])
                    else:
                        times.append(time.monotonic() - asked)
                        refusals[answer.status_code] += 1
                    await asyncio.sleep(0.2)

        await asyncio.gather(*(one() for _ in range(16)))
        outcomes = {await self.finished(self.client, name) for name in accepted}
        rate = len(accepted) / (time.monotonic() - began)
        p99 = percentile(times, 0.99)
        return {
            "accepted": len(accepted),
            "refused_429": refusals[429],
            "refusal_p99_s": round(p99, 4),
            "jobs_per_s": round(rate, 2),
            "of_the_unloaded_rate": round(rate / unloaded, 2),
            "met": set(refusals) == {429}
            and outcomes == {"completed"}
            and p99 < 0.25
            and rate > 0.9 * unloaded,
        }

    async def _rate(self, count: int) -> float:
        """Jobs a second that one patient client gets."""
        began = time.monotonic()
        answers = [await self.client.post("/v1/videos", json=BODY) for _ in range(count)]
        for answer in answers:
            await self.finished(self.client, answer.json()["id"])
        return count / (time.monotonic() - began)

    async def s3(self) -> Figures:
        """Two hundred live clients that leave after half a second."""

        async def one() -> None:
            with suppress(Exception):
                async with self.socket() as socket:
                    await socket.send(json.dumps({"type": "session.start"} | BODY))
                    await asyncio.sleep(0.5)

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(20)))
        began = time.monotonic()
        quiet = await self.settled(10)
        drained = time.monotonic() - began
        name = (await self.client.post("/v1/videos", json=BODY)).json()["id"]
        while (await self.client.get(f"/v1/videos/{name}")).json()["status"] == "queued":
            await asyncio.sleep(0.02)
        took = time.monotonic() - began
        await self.finished(self.client, name)
        return {
            "clients": 200,
            "drained_s": round(drained, 2),
            "fresh_job_s": round(took, 2),
            "met": quiet and took < 5,
        }

    async def s4(self) -> Figures:
        """One endless session with a new prompt every 50 chunks."""
        made: list[float] = []
        used: list[float] = []
        memory: list[dict[str, float]] = []
        lost = 0.0
        async with self.socket() as socket:
            await socket.send(json.dumps({"type": "session.start"} | ENDLESS))
            began = time.monotonic()
            async for message in chunks_of(socket):
                assert message["chunk"] == len(made), "an index is missing"
                made.append(message["timings"]["made"])
                lost += message["timings"]["total"]
                if len(made) % 50 == 0:
                    memory.append(self.server.usage())
                    used.append(self.server.processor())
                    prompt = {"type": "session.prompt", "prompt": f"a red ball {len(made)}"}
                    await socket.send(json.dumps(prompt))
                if len(made) == self.chunks:
                    break
            wall = time.monotonic() - began
            session = message["session"]
        await self.settled(30)
        early, middle = min(500, self.chunks // 3), self.chunks * 3 // 5
        late = self.chunks - min(1000, self.chunks // 3)
        windows = made[early:middle], made[late:]
        mid, end = (statistics.median(window) for window in windows)
        tail = percentile(windows[1], 0.99) / percentile(windows[0], 0.99)
        steps = [b - a for a, b in pairwise(used)]
        busy = statistics.median(steps[late // 50 :]) / statistics.median(
            steps[early // 50 : middle // 50]
        )
        grown = {
            part: (max(m[part] for m in memory[early // 50 :]) - memory[early // 50][part]) / MIB
            for part in ("rss", "front", "worker")
        }
        frames = await self._frames_of(session)
        return {
            "chunks": self.chunks,
            "rss_growth_mib": round(grown["rss"], 1),
            "front_growth_mib": round(grown["front"], 1),
            "worker_growth_mib": round(grown["worker"], 1),
            "chunk_median_s": round(mid, 4),
            "end_over_middle": round(end / mid, 3),
            "p99_end_over_middle": round(tail, 3),
            "processor_end_over_middle": round(busy, 3),
            "share_beside_the_model": round(1 - lost / wall, 4),
            "frames_in_the_file": frames,
            "met": grown["rss"] <= 16
            and end <= 1.1 * mid
            and tail <= 1.2
            and frames >= self.chunks * 33,
        }

    async def _frames_of(self, session: str) -> int:
        """Frames of the recording; a picture in its middle is found and decoded."""
        import av

        path = self.server.root / "recording.mp4"
        async with self.client.stream("GET", f"/v1/sessions/{session}/content") as answer:
            with path.open("wb") as file:
                async for data in answer.aiter_bytes():
                    file.write(data)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            count = sum(1 for packet in container.demux(stream) if packet.size)
            assert stream.duration is not None
            container.seek(stream.duration // 2, stream=stream)
            next(container.decode(stream))
        path.unlink()
        return count

    async def s6(self) -> Figures:
        """Sessions opened and dropped at any moment."""
        before = self.server.usage()

        async def one() -> None:
            with suppress(Exception):
                async with self.socket() as socket:
                    await asyncio.sleep(random.uniform(0, 0.05))
                    await socket.send(json.dumps({"type": "session.start"} | BODY))
                    await asyncio.sleep(random.uniform(0, 0.6))

        for _ in range(self.sessions // 10):
            await asyncio.gather(*(one() for _ in range(10)))
        quiet = await self.settled(20)
        after = self.server.usage()
        left = list((self.server.root / "data" / "spool").iterdir())
        grown = (after["rss"] - before["rss"]) / MIB
        return {
            "sessions": self.sessions,
            "rss_growth_mib": round(grown, 1),
            "files_growth": after["files"] - before["files"],
            "met": quiet and not left and grown <= 32,
        }

    async def s7(self, count: int = 400) -> Figures:
        """Idle sockets: held until they are told to start, then closed."""
        before = self.server.usage()["rss"]
        sockets = []
        for _ in range(count):
            with suppress(Exception):
                sockets.append(await self.socket())
        each = (self.server.usage()["rss"] - before) / max(1, len(sockets))
        times = []
        for _ in range(100):
            began = time.monotonic()
            await self.client.get("/v1/status")
            times.append(time.monotonic() - began)
        for socket in sockets:
            with suppress(Exception):
                await socket.close()
        p99 = percentile(times, 0.99)
        return {
            "held": len(sockets),
            "kib_each": round(each / 1024, 1),
            "status_p99_s": round(p99, 4),
            "met": len(sockets) == count and each < 256 * 1024 and p99 < 0.2,
        }

    async def s12(self) -> Figures:
        """Answers during S1, and while a large body arrives."""
        lag: dict[str, list[float]] = {"visits": [], "upload": []}

        async def ask(during: str) -> None:
            while True:
                began = time.monotonic()
                await self.client.get("/health/live")
                lag[during].append(time.monotonic() - began)
                await asyncio.sleep(0.01)

        asking = asyncio.create_task(ask("visits"))
        await Visits(self, min(20.0, self.seconds)).run()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        data = os.urandom(60 * MIB)
        asking = asyncio.create_task(ask("upload"))
        async with self.visitor() as client:
            answer = await client.post("/v1/uploads", files={"file": ("x.mp4", data)})
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        visits, upload = (percentile(lag[during], 0.99) for during in ("visits", "upload"))
        return {
            "upload_status": answer.status_code,
            "lag_p99_s": round(visits, 4),
            "lag_during_upload_p99_s": round(upload, 4),
            "met": answer.status_code == 400 and max(visits, upload) < 0.2,
        }


async def run(soak: Soak, only: list[str]) -> dict[str, Figures]:
    """The scenarios in their order, with the control beside each."""
    results: dict[str, Figures] = {}
    for name in ORDER:
        if only and name not in only:
            continue
        scenario: Callable[[], Awaitable[Figures]] = getattr(soak, name.lower())
        soak.server.settle()
        began = time.monotonic()
        async with Control() as control:
            try:
                figures = await scenario()
            except Exception as error:
                figures = {"met": False, "error": f"{type(error).__name__}: {error}"}
        results[name] = figures | control.figures
        await soak.drain_queue()
        shown = {key: value for key, value in results[name].items() if key != "met"}
        mark = "ok  " if figures["met"] else "MISS"
        print(f"{name:4} {mark} {time.monotonic() - began:6.1f} s  {shown}", flush=True)
    await soak.client.aclose()
    return results


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of S1 and S8; S2 takes half")
    parser.add_argument("--chunks", type=int, default=2619, help="of S4")
    parser.add_argument("--sessions", type=int, default=300, help="of S6")
    parser.add_argument("--only", default="", help="such as S1,S4")
    parser.add_argument("--report", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    only = [name.strip().upper() for name in arguments.only.split(",") if name.strip()]
    if not set(only) <= set(ORDER) or arguments.chunks < 300:
        parser.error(f"--only takes names out of {','.join(ORDER)}; --chunks 300 or more")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small_model(root / "model")
        server = Server(root)
        server.start()
        try:
            soak = Soak(server, arguments.seconds, arguments.chunks, arguments.sessions)
            results = asyncio.run(run(soak, only))
        finally:
            server.stop()
    if arguments.report is not None:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        report = {
            "machine": machine,
            "limits": LIMITS,
            "seconds": arguments.seconds,
            "whole_s": round(time.monotonic() - began),
            "results": results,
        }
        arguments.report.write_text(json.dumps(report, separators=(",", ":")) + "\n", "utf-8")
    return 0 if all(result["met"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
