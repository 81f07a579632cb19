"""Load on a running server, in the short form of the reliability specification, section 5.2.

    python benchmarks/soak.py --seconds 60 --report docs/results/soak.json

Starts ``helios serve`` on a small random model and runs S1 to S4, S6 to S8 and S12, one after the
other; prints a table and exits with 1 if a target is missed. ``--minutes-of S1=30`` and
``--chunks 20946`` give the long forms. Limits that the load would meet are raised and recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from websockets.asyncio.client import connect

BODY = {"prompt": "a red ball bounces on grass", "steps": 1, "guidance_scale": 1, "num_frames": 33}
LIMITS = {
    "free": 0, "per_address": 4096, "connections": 4096, "per_key": 100_000, "lifetime": 0,
    "line": 64, "quota": 8 << 30,
}  # fmt: skip
MIB = 1 << 20


def small_model(folder: Path) -> None:
    """A random model in the published layout: every room is real, a chunk takes little."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import small_pipeline  # type: ignore[import-not-found]

    small_pipeline().save(folder)


class Server:
    """The server under load and what it uses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        options = [part for k, v in LIMITS.items() for part in ("--limit", f"{k}={v}")]
        self._command = [
            sys.executable, "-m", "helios", "serve", "--port", "0", "--model", str(root / "model"),
            "--data", str(root / "data"), "--test-faults", "--device", "cpu", "--dtype", "float32",
            *options,
        ]  # fmt: skip
        self.log = root / "server.log"
        self.address = ""

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        for _ in range(1200):
            found = re.search(r"ready at (\S+)", self.log.read_text(errors="replace"))
            if found:
                self.address = found[1]
                return
            time.sleep(0.1)
        raise RuntimeError(self.log.read_text(errors="replace")[-2000:])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def usage(self) -> dict[str, float]:
        """Memory, descriptors and threads of the whole tree."""
        own = psutil.Process(self.process.pid)
        tree = [own, *own.children(recursive=True)]
        found = {"rss": 0.0, "files": 0.0, "threads": 0.0}
        for process in tree:
            with suppress(psutil.Error):
                found["rss"] += process.memory_info().rss
                found["files"] += process.num_fds()
                found["threads"] += process.num_threads()
        return found

    def worker(self) -> int | None:
        children = psutil.Process(self.process.pid).children()
        return children[0].pid if children else None


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def slope(times: list[float], values: list[float]) -> float:
    """Least-squares slope a second."""
    if len(times) < 3:
        return 0.0
    return statistics.linear_regression(times, values).slope


class Soak:
    """The scenarios; each gives figures and whether its targets are met."""

    def __init__(self, server: Server, seconds: float, chunks: int) -> None:
        self.server = server
        self.seconds = seconds
        self.chunks = chunks
        self.client = httpx.AsyncClient(
            base_url=server.address,
            timeout=60,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=256),
        )

    def socket(self) -> Any:
        url = self.server.address.replace("http", "ws") + "/v1/realtime/video"
        return connect(url, subprotocols=["helios.v1"], max_size=None, compression=None)  # type: ignore[list-item]

    async def metric(self, name: str) -> float:
        text = (await self.client.get("/metrics")).text
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def settled(self, timeout: float = 60) -> bool:
        """Whether nothing runs or waits within ``timeout``."""
        for _ in range(int(timeout * 10)):
            busy = [await self.metric(name) for name in ("jobs_active", "queue_depth")]
            if busy == [0, 0] and await self.metric("sessions_active") == 0:
                return True
            await asyncio.sleep(0.1)
        return False

    async def finished(self, name: str) -> str:
        while True:
            video = (await self.client.get(f"/v1/videos/{name}")).json()
            if video["status"] in ("completed", "failed"):
                return str((video["error"] or {}).get("code", video["status"]))
            await asyncio.sleep(0.1)

    async def drain_queue(self) -> None:
        for _ in range(50):
            videos = (await self.client.get("/v1/videos?limit=100")).json()["data"]
            if not videos:
                return
            for video in videos:
                await self.client.delete(f"/v1/videos/{video['id']}")

    async def s1(self, kills: int = 0) -> dict[str, Any]:
        """Clients that create, poll, download and delete; S12's lag and S8's kills meanwhile."""
        statuses: list[int] = []
        polls: list[float] = []
        outcomes: dict[str, int] = {}
        accepted = 0
        until = time.monotonic() + self.seconds
        usage: list[tuple[float, dict[str, float]]] = []

        async def poll(name: str) -> str:
            while True:
                began = time.monotonic()
                answer = await self.client.get(f"/v1/videos/{name}")
                polls.append(time.monotonic() - began)
                statuses.append(answer.status_code)
                video = answer.json()
                if video["status"] in ("completed", "failed"):
                    return str((video["error"] or {}).get("code", video["status"]))
                await asyncio.sleep(random.uniform(0.5, 1.5))

        async def one() -> None:
            nonlocal accepted
            while time.monotonic() < until:
                answer = await self.client.post("/v1/videos", json=BODY)
                statuses.append(answer.status_code)
                if answer.status_code == 429:
                    await asyncio.sleep(0.5)
                    continue
                if answer.status_code != 200:
                    await asyncio.sleep(0.2)
                    continue
                accepted += 1
                name = answer.json()["id"]
                outcome = await poll(name)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                if outcome == "completed":
                    content = await self.client.get(f"/v1/videos/{name}/content")
                    statuses.append(content.status_code)
                statuses.append((await self.client.delete(f"/v1/videos/{name}")).status_code)

        async def watch() -> None:
            while time.monotonic() < until:
                usage.append((time.monotonic(), self.server.usage()))
                await asyncio.sleep(1)

        recoveries: list[float] = []

        async def kill() -> None:
            for _ in range(kills):
                await asyncio.sleep(self.seconds / (kills + 1) * 0.5)
                worker = self.server.worker()
                if worker is None:
                    continue
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                began = time.monotonic()
                while (await self.client.get("/health/ready")).status_code == 200:
                    await asyncio.sleep(0.02)
                while (await self.client.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.1)
                recoveries.append(time.monotonic() - began)

        await asyncio.gather(*(one() for _ in range(64)), watch(), kill())
        half = usage[len(usage) // 2 :]
        grows = slope([t for t, _ in half], [u["rss"] for _, u in half]) * 60 / MIB
        known = {"completed", "worker_crashed"} if kills else {"completed"}
        errors = sum(1 for status in statuses if status >= 500 and not (kills and status == 503))
        ended = sum(outcomes.values())
        # On few shared cores the front process waits for the worker: the bound is that of S12.
        good = errors == 0 and ended == accepted and set(outcomes) <= known
        good = good and percentile(polls, 0.99) < 0.2 + 0.8 * bool(kills)
        figures = {
            "accepted": accepted,
            "outcomes": outcomes,
            "answers_5xx": errors,
            "status_p99_s": round(percentile(polls, 0.99), 4),
            "rss_mib_per_min": round(grows, 2),
        }
        if kills:
            figures["kills"] = len(recoveries)
            figures["recovery_max_s"] = round(max(recoveries, default=0), 2)
        return figures | {"met": good}

    async def s8(self) -> dict[str, Any]:
        """S1 while the worker is killed; fewer times than it takes to be given up."""
        return await self.s1(kills=3)

    async def s2(self) -> dict[str, Any]:
        """Far more posts than can be taken: refused at once, what is accepted is done."""
        times: list[float] = []
        accepted: list[str] = []
        refused = 0
        until = time.monotonic() + self.seconds / 2

        async def one() -> None:
            nonlocal refused
            while time.monotonic() < until:
                began = time.monotonic()
                answer = await self.client.post("/v1/videos", json=BODY)
                if answer.status_code == 200:
                    accepted.append(answer.json()["id"])
                else:
                    times.append(time.monotonic() - began)
                    refused += answer.status_code == 429
                await asyncio.sleep(0.2)

        await asyncio.gather(*(one() for _ in range(20)))
        outcomes = {await self.finished(name) for name in accepted}
        p99 = percentile(times, 0.99)
        return {
            "accepted": len(accepted),
            "refused_429": refused,
            "refusal_p99_s": round(p99, 4),
            "met": refused == len(times) > 0 and outcomes == {"completed"} and p99 < 0.25,
        }

    async def s3(self) -> dict[str, Any]:
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
        return {
            "clients": 200,
            "drained_s": round(drained, 2),
            "fresh_job_s": round(took, 2),
            "met": quiet and took < 5,
        }

    async def s4(self) -> dict[str, Any]:
        """One endless session with a new prompt every 50 chunks."""
        made: list[float] = []
        memory: list[float] = []
        lost, last = 0.0, -1
        wall = 0.0
        async with self.socket() as socket:
            body = {k: v for k, v in BODY.items() if k != "num_frames"}
            await socket.send(json.dumps({"type": "session.start"} | body))
            began = time.monotonic()
            while last + 1 < self.chunks:
                text = await socket.recv()
                if isinstance(text, bytes):
                    continue
                message = json.loads(text)
                assert message["type"] != "error", message
                if message["type"] != "video.chunk":
                    continue
                assert message["chunk"] == last + 1, "an index is missing"
                last = message["chunk"]
                timings = message["timings"]
                made.append(timings["made"])
                lost += timings["total"]
                if last % 50 == 49:
                    memory.append(self.server.usage()["rss"])
                    prompt = {"type": "session.prompt", "prompt": f"a red ball {last}"}
                    await socket.send(json.dumps(prompt))
            wall = time.monotonic() - began
        await self.settled(30)
        # Until then the borders that a session can go back to fill up.
        early = min(500, self.chunks // 2) // 50
        grown = (max(memory[early:]) - memory[early]) / MIB if len(memory) > early else 0.0
        middle = statistics.median(made[self.chunks // 5 : self.chunks // 2])
        end = statistics.median(made[-self.chunks // 4 :])
        return {
            "chunks": self.chunks,
            "rss_growth_mib": round(grown, 1),
            "chunk_median_s": round(middle, 4),
            "end_over_middle": round(end / middle, 3),
            "share_beside_the_model": round(1 - lost / wall, 4),
            "met": grown <= 16 and end <= 1.1 * middle,
        }

    async def s6(self, count: int = 300) -> dict[str, Any]:
        """Sessions opened and dropped at any moment."""
        before = self.server.usage()

        async def one() -> None:
            with suppress(Exception):
                async with self.socket() as socket:
                    await asyncio.sleep(random.uniform(0, 0.05))
                    await socket.send(json.dumps({"type": "session.start"} | BODY))
                    await asyncio.sleep(random.uniform(0, 0.6))

        for _ in range(count // 10):
            await asyncio.gather(*(one() for _ in range(10)))
        quiet = await self.settled(20)
        after = self.server.usage()
        left = list((self.server.root / "data" / "spool").iterdir())
        grown = (after["rss"] - before["rss"]) / MIB
        return {
            "sessions": count,
            "rss_growth_mib": round(grown, 1),
            "files_growth": after["files"] - before["files"],
            "met": quiet and not left and grown <= 32,
        }

    async def s7(self, count: int = 400) -> dict[str, Any]:
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
            "met": each < 256 * 1024 and p99 < 0.2,
        }

    async def s12(self) -> dict[str, Any]:
        """Answers while a large body arrives."""
        times: list[float] = []
        going = True

        async def ask() -> None:
            while going:
                began = time.monotonic()
                await self.client.get("/health/live")
                times.append(time.monotonic() - began)
                await asyncio.sleep(0.01)

        asking = asyncio.create_task(ask())
        data = os.urandom(60 * MIB)
        answer = await self.client.post("/v1/uploads", files={"file": ("x.mp4", data)})
        going = False
        await asking
        p99 = percentile(times, 0.99)
        return {
            "upload_status": answer.status_code,
            "lag_p99_s": round(p99, 4),
            "met": answer.status_code == 400 and p99 < 0.2,
        }


async def run(server: Server, seconds: float, chunks: int, only: list[str]) -> dict[str, Any]:
    soak = Soak(server, seconds, chunks)
    results: dict[str, Any] = {}
    for name in ("s1", "s2", "s3", "s4", "s6", "s7", "s12", "s8"):
        if only and name.upper() not in only:
            continue
        scenario: Callable[[], Awaitable[dict[str, Any]]] = getattr(soak, name)
        began = time.monotonic()
        try:
            results[name.upper()] = await scenario()
        except Exception as error:
            results[name.upper()] = {"met": False, "error": f"{type(error).__name__}: {error}"}
        await soak.drain_queue()
        figures = {k: v for k, v in results[name.upper()].items() if k != "met"}
        mark = "ok  " if results[name.upper()]["met"] else "MISS"
        print(f"{name.upper():4} {mark} {time.monotonic() - began:6.1f} s  {figures}", flush=True)
    await soak.client.aclose()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of S1; S2 takes half of it")
    parser.add_argument("--chunks", type=int, default=2619, help="of S4")
    parser.add_argument("--only", nargs="*", default=[], help="such as S1 S4")
    parser.add_argument("--report", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small_model(root / "model")
        server = Server(root)
        server.start()
        try:
            results = asyncio.run(run(server, arguments.seconds, arguments.chunks, arguments.only))
        finally:
            server.stop()
    if arguments.report is not None:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        report = {"machine": machine, "limits": LIMITS, "seconds": arguments.seconds}
        text = json.dumps(report | {"results": results}, indent=2)
        arguments.report.write_text(text + "\n", "utf-8")
    return 0 if all(result["met"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
