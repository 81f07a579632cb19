"""A real server in a process of its own, and clients for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
from websockets.sync.client import ClientConnection, connect

PROMPT = "a red ball bounces on grass"
QUICK: dict[str, Any] = {"prompt": PROMPT, "steps": 1, "guidance_scale": 1, "seed": 3}
"""A video of the small random model: one chunk takes a few hundredths of a second."""


class Server:
    """``helios serve`` on a free port.

    Args:
        model: folder of the model.
        data: folder of the server.
        options: more of the command line.
    """

    def __init__(self, model: Path, data: Path, options: Sequence[str] = ()) -> None:
        self.data = data
        self.log = data.parent / f"{data.name}.log"
        self._command = [
            sys.executable, "-m", "helios", "serve", "--port", "0", "--model", str(model),
            "--data", str(data), "--test-faults", "--limit", "free=0", "--device", "cpu",
            "--dtype", "float32", *options,
        ]  # fmt: skip
        self.address = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, patience: float = 240) -> Self:
        """Start it and wait until it is ready."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            begun = log.tell()
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, stderr=log, env=environment
            )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            text = self.log.read_bytes()[begun:].decode(errors="replace")
            if found := re.search(r"helios is ready at (\S+)", text):
                self.address = found[1]
                return self
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {text[-3000:]}")
            time.sleep(0.05)
        raise RuntimeError(f"the server was not ready: {text[-3000:]}")

    def stop(self, number: int = signal.SIGTERM, wait: float = 40) -> int:
        """Send a signal and wait for the end; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(wait)

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def client(self, key: str | None = None, **more: Any) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=60, **more)

    def live(self, key: str | None = None, **more: Any) -> Live:
        """A live connection."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        url = self.address.replace("http", "ws") + "/v1/realtime/video"
        return Live(
            connect(
                url,
                additional_headers=headers | more.pop("headers", {}),
                subprotocols=more.pop("subprotocols", ["helios.v1"]),
                max_size=None,
                compression=None,
                close_timeout=1,
                legacy=True,
                **more,
            )
        )

    def fault(self, kind: str, **values: Any) -> None:
        with self.client() as client:
            answer = client.post("/test/faults", json={"kind": kind, **values})
            assert answer.status_code == 200, answer.text

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 if there is none."""
        with self.client() as client:
            text = client.get("/metrics").text
        wanted = ",".join(f'{k}="{v}"' for k, v in sorted(labels.items()))
        line = f"{name}{{{wanted}}}" if labels else name
        for row in text.splitlines():
            if row.rsplit(" ", 1)[0] == line:
                return float(row.rsplit(" ", 1)[1])
        return 0.0

    def worker(self) -> int:
        """The process that was the last to say that it has its model."""
        rows = [json.loads(row) for row in self.log.read_text().splitlines() if row[:1] == "{"]
        return int([row["process"] for row in rows if row["event"] == "worker_ready"][-1])

    def children(self) -> list[int]:
        """Processes that the server started and that live: workers and what may replace them."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with suppress(OSError):
            return [int(pid) for pid in path.read_text().split()]
        return []


class Live:
    """A live client that keeps what it received.

    Attributes:
        messages: texts, as they came.
        media: for each stream its header and its fragments by chunk.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []
        self.media: dict[int, list[bytes]] = {}
        self._expected: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, kind: str, **values: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **values}))

    def start(self, **values: Any) -> dict[str, Any]:
        """Start a quick session; what was created."""
        self.send("session.start", **(QUICK | values))
        return self.until("session.created")

    def receive(self, timeout: float = 60) -> dict[str, Any]:
        """The next text; the bytes after it are kept."""
        text = self.socket.recv(timeout)
        assert isinstance(text, str), "bytes without a message before them"
        message: dict[str, Any] = json.loads(text)
        if message["type"] in ("video.start", "video.chunk"):
            body = self.socket.recv(timeout)
            assert isinstance(body, bytes)
            assert len(body) == message["bytes"]
            self.media.setdefault(message["stream"], []).append(body)
        self.messages.append(message)
        return message

    def until(self, *kinds: str, timeout: float = 60) -> dict[str, Any]:
        """Receive until a message of one of ``kinds``; an unexpected error fails."""
        while True:
            message = self.receive(timeout)
            if message["type"] in kinds:
                return message
            if message["type"] == "error":
                raise AssertionError(f"unexpected error: {message}")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    def film(self, stream: int = 1) -> bytes:
        """All bytes of a stream joined."""
        return b"".join(self.media[stream])


@contextmanager
def running(model: Path, data: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """A server for the time of the block."""
    server = Server(model, data, options)
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def finished(client: httpx.Client, name: str, timeout: float = 120) -> dict[str, Any]:
    """The job once it is completed or failed."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        video: dict[str, Any] = client.get(f"/v1/videos/{name}").json()
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(0.02)
    raise AssertionError(f"the job is not done: {video}")


def wait_for(condition: Any, timeout: float = 30, what: str = "it") -> None:
    """Wait until ``condition()`` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def at_rest(server: Server) -> None:
    """Wait until what earlier tests left is over: a fault hits whoever is at work."""
    names = ("sessions_active", "sessions_waiting", "jobs_active", "queue_depth")
    wait_for(lambda: not any(server.metric(name) for name in names), 60, "rest")


def make(client: httpx.Client, **values: Any) -> dict[str, Any]:
    """A quick job, accepted."""
    answer = client.post("/v1/videos", json=QUICK | {"num_frames": 33} | values)
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video
