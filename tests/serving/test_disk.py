"""Case A40 on a real file system that is full: a few MiB of memory, seen by the process alone.

It is mounted in a name space of its own, so that nothing can stay behind. Where the system lets
nobody do that these are reported as skipped, for want of a way to mount; ``test_process.py`` has
the same case with an injected fault.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from helios.media import read_video

from .harness import PROMPT, QUICK, Server, finished, make, wait_for

pytestmark = pytest.mark.slow
MIB = 1 << 20
ROOM = 64 << 10
"""What the ballast leaves free: less than the job needs."""


def ways_to_mount() -> list[list[str]]:
    """The beginning of a command that may mount something for itself; empty: nothing may here."""
    for words in (["unshare", "-m"], ["unshare", "-rm"]):
        trial = [*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        with suppress(FileNotFoundError):
            if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
                return [words]
    return []


@pytest.fixture(params=ways_to_mount(), ids=" ".join)
def space(request: pytest.FixtureRequest) -> list[str]:
    words: list[str] = request.param
    return words


def mounted(space: list[str], disk: Path, size: int, command: list[str]) -> list[str]:
    """``command`` with ``size`` bytes of memory as the folder ``disk``."""
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    return [*space, "sh", "-c", script, str(disk), *command]


def fill(path: Path, room: int) -> None:
    """Let ``path`` take all that is free but ``room`` bytes."""
    path.unlink(missing_ok=True)
    free = shutil.disk_usage(path.parent).free
    path.write_bytes(bytes(free - room))


@pytest.fixture
def server(space: list[str], tiny_random: Path, tmp_path: Path) -> Iterator[Server]:
    """A server whose data lie on 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    own = Server(tiny_random, disk / "data", ("--limit", "spares=0"))
    own._command = mounted(space, disk, 8 * MIB, own._command)
    own.log = tmp_path / "server.log"
    try:
        yield own.start()
    finally:
        if own.process is not None:
            own.process.kill()
            own.process.wait()


def test_a40_a_disk_that_is_full_fails_the_job_and_nothing_else(server: Server) -> None:
    assert server.process is not None
    # The disk as the server sees it.
    disk = Path(f"/proc/{server.process.pid}/root{server.data.parent}")
    data = disk / "data"
    with server.client() as client:
        before = finished(client, make(client)["id"])
        assert before["status"] == "completed"
        ballast = disk / "ballast"
        fill(ballast, ROOM)
        hurt = finished(client, make(client, num_frames=660)["id"])
        assert (hurt["status"], hurt["error"]["code"]) == ("failed", "insufficient_storage")
        assert not list((data / "videos" / hurt["id"]).iterdir())
        # What was there is whole, and the server answers.
        assert client.get(f"/v1/videos/{before['id']}/content").status_code == 200
        with server.live() as live:
            live.start(num_frames=660)
            while live.receive()["type"] != "error":
                pass
            assert live.messages[-1]["error"]["code"] == "insufficient_storage"
        # Its states are written when it is parked; then nothing else takes room.
        wait_for(lambda: server.metric("sessions_active") == 0, 20, "the parking")
        fill(ballast, 0)
        refused = client.post("/v1/videos", json=QUICK | {"num_frames": 33})
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            507,
            "insufficient_storage",
        )
        ballast.unlink()
        assert finished(client, make(client, num_frames=660)["id"])["status"] == "completed"
        assert not list((data / "spool").iterdir())


def test_a40_generate_on_a_full_disk_ends_with_6_and_leaves_nothing(
    space: list[str], tiny_random: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    generate = (
        f"{sys.executable} -m helios generate '{PROMPT}' --model {tiny_random} --steps 1 --seed 3 "
        f"--guidance-scale 1 --device cpu --dtype float32 --num-frames 330 -o {disk}/out.mp4"
    )
    script = (
        f"head -c {MIB - ROOM} /dev/zero > {disk}/ballast; {generate}; echo code $?; ls {disk};"
        f"rm {disk}/ballast; {generate}; echo code $?; ls {disk};"
        f"cp {disk}/out.mp4 {tmp_path}/kept.mp4"
    )
    done = subprocess.run(
        mounted(space, disk, MIB, ["sh", "-c", script]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [word for word in done.stdout.split() if "/" not in word]
    assert said == ["code", "6", "ballast", "code", "0", "out.mp4"], done.stderr
    assert "error: 6: " in done.stderr
    assert len(read_video(tmp_path / "kept.mp4")[0]) == 330
