"""What ``soak.py`` loads, the clients it sends, and what it holds their figures against."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeAlias

import httpx
import psutil
from websockets.asyncio.client import connect

__all__ = [
    "BODY", "LIMITS", "MIB", "Control", "Figures", "Load", "Ruler", "Server", "Visits",
    "chunks_of", "percentile", "slope", "small_model",
]  # fmt: skip

LIMITS = {
    "free": 0, "per_address": 4096, "connections": 4096, "per_key": 100_000, "lifetime": 0,
    "line": 64, "quota": 8 << 30,
}  # fmt: skip
MIB = 1 << 20
BODY = {"prompt": "a red ball bounces on grass", "steps": 1, "guidance_scale": 1, "num_frames": 33}
CLIENTS = 64
Figures: TypeAlias = dict[str, Any]


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
        self._read = 0
        self._worker: int | None = None

    def start(self) -> None:
        """Start it; it is ready, and nothing loads any more, when this returns."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        for _ in range(1200):
            found = re.search(r"ready at (\S+)", self.log.read_text(errors="replace"))
            if found:
                self.address = found[1]
                self.settle()
                return
            time.sleep(0.1)
        raise RuntimeError(self.log.read_text(errors="replace")[-2000:])

    def settle(self, timeout: float = 60) -> None:
        """Wait until its memory stands still: until nothing is being loaded."""
        seen = -1.0
        for _ in range(int(timeout)):
            now = self.usage()["rss"]
            if abs(now - seen) < MIB:
                return
            seen = now
            time.sleep(1)

    def stop(self) -> None:
        """Let it drain."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def usage(self) -> dict[str, float]:
        """Memory, descriptors and threads of the whole tree, memory of each part."""
        own = psutil.Process(self.process.pid)
        found = {"rss": 0.0, "front": 0.0, "worker": 0.0, "files": 0.0, "threads": 0.0}
        worker = self.worker()
        for process in [own, *own.children(recursive=True)]:
            with suppress(psutil.Error):
                size = process.memory_info().rss
                found["rss"] += size
                found["files"] += process.num_fds()
                found["threads"] += process.num_threads()
                part = {own.pid: "front", worker: "worker"}.get(process.pid)
                if part is not None:
                    found[part] += size
        return found

    def worker(self) -> int | None:
        """The process that was the last to say that it has its model."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            rows = log.read().rpartition(b"\n")[0]
        for row in rows.split(b"\n"):
            if b'"worker_ready"' in row:
                self._worker = int(json.loads(row)["process"])
        self._read += len(rows)
        return self._worker

    def processor(self) -> float:
        """Seconds of a processor that the worker has used."""
        with suppress(psutil.Error):
            times = psutil.Process(self.worker()).cpu_times()
            return float(times.user + times.system)
        return 0.0


_ECHO = """
import asyncio
async def answer(reader, writer):
    while data := await reader.read(64):
        writer.write(data)
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


class Control:
    """What this machine costs whoever does nothing: an echo, asked while a scenario runs.

    The same two processes, socket and event loop as the service, without the service. What it
    takes here is the machine's load and the load program's own.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    async def __aenter__(self) -> Self:
        self._echo = subprocess.Popen(
            [sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._echo.stdout is not None
        port = int(await asyncio.to_thread(self._echo.stdout.readline))
        self._task = asyncio.create_task(self._ask(port))
        return self

    async def _ask(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            began = time.monotonic()
            writer.write(b"x")
            await reader.read(64)
            self.times.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._echo.kill()
        self._echo.wait()

    @property
    def figures(self) -> dict[str, Any]:
        """Its 99th percentile, and how many processes wanted a core."""
        return {
            "control_p99_s": round(percentile(self.times, 0.99), 4),
            "load": round(os.getloadavg()[0], 1),
        }


_RULER = """
import sys, time
import numpy as np
a = np.random.default_rng(0).random((64, 64), np.float32) / 8
for line in sys.stdin:
    began, used, b = time.perf_counter(), time.process_time(), a
    for _ in range(400):
        b = np.tanh(b @ a)
    print(time.perf_counter() - began, time.process_time() - used, flush=True)
"""


class Ruler:
    """The same fixed work again and again, in a process of its own: how fast the machine is now.

    It knows nothing of the service, so what it takes longer at one end of a run than in the middle
    is the machine's doing: other load on its cores and caches, or its clock.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RULER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, text=True,
        )  # fmt: skip
        self._ask()  # the first has libraries to load
        return self

    def _ask(self) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [float(word) for word in self._process.stdout.readline().split()]

    async def measure(self) -> None:
        """Once more, about 20 ms of work."""
        wall, processor = await asyncio.to_thread(self._ask)
        self.wall.append(wall)
        self.processor.append(processor)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Load:
    """What the scenarios share: clients, sockets, waiting for silence."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = self.visitor()

    def visitor(self) -> httpx.AsyncClient:
        """A client with connections of its own; a pool that many share would queue by itself."""
        return httpx.AsyncClient(base_url=self.server.address, timeout=60, verify=False)

    def socket(self) -> Any:
        """A live connection."""
        url = self.server.address.replace("http", "ws") + "/v1/realtime/video"
        return connect(url, subprotocols=["helios.v1"], max_size=None, compression=None)  # type: ignore[list-item]

    async def fault(self, kind: str, **values: float) -> None:
        """Let something go wrong."""
        (await self.client.post("/test/faults", json={"kind": kind, **values})).raise_for_status()

    async def metric(self, name: str) -> float:
        """A figure of ``/metrics``."""
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

    async def finished(self, client: httpx.AsyncClient, name: str, pause: float = 0.1) -> str:
        """How a job ended: completed, or the code of its failure."""
        while True:
            video = (await client.get(f"/v1/videos/{name}")).json()
            if video["status"] in ("completed", "failed"):
                return str((video["error"] or {}).get("code", video["status"]))
            await asyncio.sleep(pause)

    async def drain_queue(self) -> None:
        """Delete every job."""
        for _ in range(200):
            videos = (await self.client.get("/v1/videos?limit=100")).json()["data"]
            if not videos:
                return
            for video in videos:
                await self.client.delete(f"/v1/videos/{video['id']}")


class Visits:
    """S1: clients that create, poll, download and delete for ``seconds``."""

    def __init__(self, load: Load, seconds: float) -> None:
        self.load = load
        self.warm = time.monotonic() + min(10.0, seconds / 6)
        self.until = time.monotonic() + seconds
        self.statuses: Counter[int] = Counter()
        self.polls: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self.accepted = 0
        self.usage: list[tuple[float, dict[str, float]]] = []

    async def run(self) -> None:
        """All of them, until the last accepted job has ended."""
        await asyncio.gather(*(self._one() for _ in range(CLIENTS)), self._watch())

    async def _one(self) -> None:
        async with self.load.visitor() as client:
            await asyncio.sleep(random.uniform(0, 1))
            while time.monotonic() < self.until:
                answer = await client.post("/v1/videos", json=BODY)
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.accepted += 1
                    await self._follow(client, answer.json()["id"])
                else:
                    await asyncio.sleep(0.5)

    async def _follow(self, client: httpx.AsyncClient, name: str) -> None:
        while True:
            began = time.monotonic()
            answer = await client.get(f"/v1/videos/{name}")
            if began > self.warm:
                self.polls.append(time.monotonic() - began)
            self.statuses[answer.status_code] += 1
            video = answer.json()
            if video["status"] in ("completed", "failed"):
                break
            await asyncio.sleep(random.uniform(0.5, 1.5))
        self.outcomes[str((video["error"] or {}).get("code", video["status"]))] += 1
        if video["status"] == "completed":
            self.statuses[(await client.get(f"/v1/videos/{name}/content")).status_code] += 1
        self.statuses[(await client.delete(f"/v1/videos/{name}")).status_code] += 1

    async def _watch(self) -> None:
        while time.monotonic() < self.until:
            if time.monotonic() > self.warm:
                self.usage.append((time.monotonic(), self.load.server.usage()))
            await asyncio.sleep(1)

    def figures(self) -> Figures:
        """What was seen."""
        times = [t for t, _ in self.usage]
        rise, interval = slope(times, [u["rss"] * 60 / MIB for _, u in self.usage])
        front, _ = slope(times, [u["front"] * 60 / MIB for _, u in self.usage])
        return {
            "accepted": self.accepted,
            "outcomes": dict(self.outcomes),
            "answers_5xx": sum(n for status, n in self.statuses.items() if status >= 500),
            "status_p50_s": round(percentile(self.polls, 0.5), 4),
            "status_p99_s": round(percentile(self.polls, 0.99), 4),
            "rss_mib_per_min": [round(rise, 2), round(interval, 2)],
            "front_mib_per_min": round(front, 2),
        }


async def chunks_of(socket: Any) -> AsyncIterator[Figures]:
    """Every message of a chunk; an error ends the run."""
    async for text in socket:
        if isinstance(text, bytes):
            continue
        message = json.loads(text)
        assert message["type"] != "error", message
        if message["type"] == "video.chunk":
            yield message


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope a second, and half the width of its 95 % interval."""
    if len(times) < 4:
        return 0.0, 0.0
    found = statistics.linear_regression(times, values)
    rest = [v - found.slope * t - found.intercept for t, v in zip(times, values, strict=True)]
    mean = statistics.fmean(times)
    spread = sum((t - mean) ** 2 for t in times)
    variance = sum(r * r for r in rest) / (len(times) - 2)
    return found.slope, 1.96 * (variance / spread) ** 0.5
