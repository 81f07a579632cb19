"""Scenarios of file jobs: S1, S2, S8 and S12 of the reliability specification, section 5.2."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import suppress

from soak_server import (
    BODY,
    MIB,
    Figures,
    Load,
    Visits,
    percentile,
)

__all__ = ["JobScenarios"]


class JobScenarios(Load):
    """What clients of the API do; each gives figures and whether its targets are met.

    Attributes:
        seconds: of S1 and S8; S2 takes half.
    """

    seconds: float

    async def s1(self) -> Figures:
        """Clients that create, poll, download and delete."""
        await self._rate(64)  # what is loaded or kept with the first jobs is there then
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
