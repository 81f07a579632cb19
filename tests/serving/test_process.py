"""Cases A26 and A38-A42: processes that die, hang, run out of room or are told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from helios.media import read_video

from .harness import PROMPT, Server, finished, make, running, wait_for

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def own(tiny_random: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may be hurt; it gives up on a worker after three seconds."""
    options = ("--limit", "watchdog=3", "--limit", "grace=3")
    with running(tiny_random, tmp_path_factory.mktemp("own") / "data", options) as server:
        yield server


def helios(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "helios", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def ready(server: Server) -> bool:
    with server.client() as client:
        return client.get("/health/ready").status_code == 200


def in_progress(client: httpx.Client, name: str) -> bool:
    return bool(client.get(f"/v1/videos/{name}").json()["status"] == "in_progress")


def test_a26_no_public_address_without_a_key(tmp_path: Path) -> None:
    began = time.monotonic()
    done = helios("serve", "--host", "0.0.0.0", "--data", str(tmp_path / "d"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: 2: host 0.0.0.0")
    assert not (tmp_path / "d").exists()
    assert time.monotonic() - began < 60


@slow
def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    done = helios("serve", "--port", "0", "--model", str(tmp_path / "m"), "--data", str(tmp_path))
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("error: 4: ")


@slow
def test_a38_out_of_memory_fails_one_job_only(own: Server) -> None:
    with own.client() as client:
        finished(client, make(client)["id"])
        before = own.metric("rss_bytes", process="worker0")
        own.fault("out_of_memory")
        video = finished(client, make(client)["id"])
        assert (video["status"], video["error"]["code"]) == ("failed", "out_of_memory")
        assert not list((own.data / "videos" / video["id"]).iterdir())
        own.fault("non_finite")
        video = finished(client, make(client)["id"])
        assert video["error"]["code"] == "non_finite_output"
        own.fault("error")
        video = finished(client, make(client)["id"])
        assert video["error"]["code"] == "internal_error"
        assert "injected" not in str(video)
        assert finished(client, make(client)["id"])["status"] == "completed"
        assert own.metric("rss_bytes", process="worker0") < 1.05 * before + (8 << 20)


@slow
def test_a39_a_killed_worker_is_replaced_and_the_queue_goes_on(own: Server) -> None:
    restarts = own.metric("worker_restarts_total")
    with own.client() as client, own.live() as live:
        own.fault("slow", seconds=0.2)
        session = live.start(num_frames=990, ahead=1)["session"]
        live.until("video.chunk")
        live.send("session.save")
        live.until("session.saved")
        hurt = make(client, num_frames=990)
        queued = [make(client) for _ in range(3)]
        wait_for(lambda: in_progress(client, hurt["id"]))
        os.kill(own.worker(), signal.SIGKILL)
        wait_for(lambda: client.get("/health/ready").status_code == 503, 10, "the loss")
        video = finished(client, hurt["id"])
        assert (video["status"], video["error"]["code"]) == ("failed", "worker_crashed")
        while live.receive()["type"] != "error":
            pass
        assert live.messages[-1]["error"]["code"] == "worker_crashed"
        assert live.until("session.done")["reason"] == "worker"
        wait_for(lambda: ready(own), 60, "ready")
        assert {finished(client, job["id"])["status"] for job in queued} == {"completed"}
        assert own.metric("worker_restarts_total") == restarts + 1
        live.send("session.resume", session=session, have=0, ahead=1)
        live.until("session.created")
        assert live.until("video.chunk")["chunk"] == 0


@slow
def test_a_hanging_worker_is_replaced(own: Server) -> None:
    with own.client() as client:
        own.fault("hang", seconds=100)
        video = finished(client, make(client)["id"])
        assert (video["status"], video["error"]["code"]) == ("failed", "timeout")
        wait_for(lambda: ready(own), 60, "ready")
        assert finished(client, make(client)["id"])["status"] == "completed"


@slow
def test_a_frozen_worker_is_fenced_out(own: Server) -> None:
    """Requirement 48: it is gone before its successor is there, and has written nothing."""
    with own.client() as client:
        own.fault("slow", seconds=0.2)
        hurt = make(client, num_frames=990)["id"]
        wait_for(lambda: client.get(f"/v1/videos/{hurt}").json()["chunks"] >= 1, 30, "a chunk")
        frozen = own.worker()
        os.kill(frozen, signal.SIGSTOP)
        video = finished(client, hurt)
        assert (video["status"], video["error"]["code"]) == ("failed", "timeout")
        assert not Path(f"/proc/{frozen}").exists()
        wait_for(lambda: ready(own), 60, "ready")
        assert own.worker() != frozen
        assert not list((own.data / "videos" / hurt).iterdir())
        assert finished(client, make(client)["id"])["status"] == "completed"


@slow
def test_a40_a_full_disk_fails_the_job_and_leaves_nothing(own: Server) -> None:
    with own.client() as client:
        own.fault("disk_full")
        video = finished(client, make(client)["id"])
        assert (video["status"], video["error"]["code"]) == ("failed", "insufficient_storage")
        assert not list((own.data / "videos" / video["id"]).iterdir())
        own.fault("disk_free")
        assert finished(client, make(client)["id"])["status"] == "completed"


def test_a40_too_little_room_is_said_before_the_work(tiny_random: Path, tmp_path: Path) -> None:
    from helios.serving import Limits
    from helios.serving.errors import ApiError
    from helios.serving.store import Store

    with pytest.raises(ApiError) as caught:
        Store(tmp_path, Limits(free=1 << 60)).check_room()
    assert (caught.value.status, caught.value.code) == (507, "insufficient_storage")


@slow
def test_killed_at_any_moment_every_accepted_job_has_an_outcome(own: Server) -> None:
    with own.client() as client:
        done = finished(client, make(client)["id"])
        content = client.get(f"/v1/videos/{done['id']}/content").content
        own.fault("slow", seconds=0.3)
        cut = make(client, num_frames=990)
        queued = [make(client) for _ in range(2)]
        wait_for(lambda: in_progress(client, cut["id"]))
        workers = own.children()
    own.stop(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10, "its end")
    # What a crash may leave behind.
    (own.data / "spool" / "left").write_bytes(b"x")
    (own.data / "videos" / ("video_" + "0" * 32)).mkdir()
    own.start()
    with own.client() as client:
        video = client.get(f"/v1/videos/{cut['id']}").json()
        assert (video["status"], video["error"]["code"]) == ("failed", "server_restarted")
        assert client.get(f"/v1/videos/{done['id']}/content").content == content
        assert {finished(client, job["id"])["status"] for job in queued} == {"completed"}
    assert not list((own.data / "spool").iterdir())
    assert not (own.data / "videos" / ("video_" + "0" * 32)).exists()


@slow
def test_a_second_server_with_the_same_data_is_refused(own: Server, tiny_random: Path) -> None:
    other = ("--port", "0", "--model", str(tiny_random), "--data", str(own.data))
    done = helios("serve", *other)
    assert done.returncode == 6
    assert "another server" in done.stderr.splitlines()[-1]


@slow
def test_a41_sigterm_lets_short_jobs_finish_and_ends_long_ones(own: Server) -> None:
    with own.client() as client, own.live() as live:
        live.start(ahead=1)
        live.until("video.chunk")
        own.fault("slow", seconds=0.2)
        short = make(client, num_frames=99)
        wait_for(lambda: in_progress(client, short["id"]))
        workers = own.children()
        assert own.stop() == 0
        while live.receive()["type"] != "server.draining":
            pass
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    own.start()
    with own.client() as client:
        assert client.get(f"/v1/videos/{short['id']}").json()["status"] == "completed"
        own.fault("slow", seconds=0.3)
        long = make(client, num_frames=1452)
        wait_for(lambda: in_progress(client, long["id"]))
        workers = own.children()
        began = time.monotonic()
        assert own.stop() == 0
        assert time.monotonic() - began < 3 + 5
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    own.start()
    with own.client() as client:
        video = client.get(f"/v1/videos/{long['id']}").json()
        assert (video["status"], video["error"]["code"]) == ("failed", "server_shutdown")


@slow
def test_a42_a_killed_generate_leaves_no_final_file(tiny_random: Path, tmp_path: Path) -> None:
    out, clean = tmp_path / "out.mp4", tmp_path / "clean.mp4"
    common = ["generate", PROMPT, "--model", str(tiny_random), "--steps", "1", "--seed", "3"]
    common += ["--guidance-scale", "1", "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "helios", *common, "--num-frames", "100000", "-o", str(out)],
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / "out.partial.mp4"
    wait_for(lambda: partial.exists() and partial.stat().st_size > 20_000, 90, "writing")
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert not out.exists()
    assert len(read_video(partial, 33)[0]) == 33
    for path in (out, clean):
        done = helios(*common, "--num-frames", "66", "-o", str(path))
        assert done.returncode == 0, done.stderr
    assert out.read_bytes() == clean.read_bytes()
    assert np.array_equal(read_video(out)[0], read_video(clean)[0])


def test_the_front_process_never_loads_pytorch() -> None:
    code = "import sys, helios.serving.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
