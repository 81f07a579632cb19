"""Two nodes on Ray: a caller keeps its node, and gets there what one server would give."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from helios.cli.main import run
from helios.serving.ray_app import node_of

from .harness import Server, finished, make

slow = pytest.mark.slow
ABSENT = importlib.util.find_spec("ray") is None


def callers() -> tuple[str, str]:
    """Two keys that belong to different nodes."""
    first = "a" * 40
    other = next(
        key for key in (f"{n:040d}" for n in range(99)) if node_of(key, 2) != node_of(first, 2)
    )
    return first, other


def test_callers_are_spread_evenly_and_always_the_same() -> None:
    nodes = [node_of(f"caller {n}", 4) for n in range(4000)]
    assert nodes == [node_of(f"caller {n}", 4) for n in range(4000)]
    assert all(900 < nodes.count(node) < 1100 for node in range(4))


def test_without_the_extra_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve", "--ray", "2", "--data", str(tmp_path)]) == 2
    assert "helios-video[ray]" in capfd.readouterr().err.splitlines()[-1]


@slow
def test_two_nodes_keep_their_callers(tiny_random: Path, tmp_path: Path) -> None:
    if ABSENT:
        return  # what is said then has a test of its own
    first, other = callers()
    (tmp_path / "keys").write_text(f"one {first}\ntwo {other}\n")
    server = Server(
        tiny_random, tmp_path / "data", ("--ray", "2", "--api-key-file", str(tmp_path / "keys"))
    )
    server.start()
    try:
        with server.client(first) as one, server.client(other) as two, server.client() as none:
            assert none.get("/v1/videos").status_code == 401
            mine, theirs = make(one)["id"], make(two)["id"]
            videos = [finished(one, mine), finished(two, theirs)]
            assert [video["status"] for video in videos] == ["completed", "completed"]
            assert one.get(f"/v1/videos/{theirs}").status_code == 404
            contents = [
                client.get(f"/v1/videos/{name}/content").content
                for client, name in ((one, mine), (two, theirs))
            ]
            assert contents[0] == contents[1]
        with server.live(first) as live:
            session = live.start(num_frames=66, ahead=1)["session"]
            live.until("video.chunk")
        with server.live(first) as live:
            live.send("session.resume", session=session, have=0)
            assert live.until("session.done")["frames"] == 66
        with server.live(other) as live:
            live.send("session.resume", session=session)
            while live.receive()["type"] != "error":
                pass
            assert live.messages[-1]["error"]["code"] == "session_not_found"
        nodes = sorted(path.name for path in (tmp_path / "data").glob("node-*"))
        assert nodes == ["node-0", "node-1"]
        assert all(list((tmp_path / "data" / n / "data" / "videos").iterdir()) for n in nodes)
    finally:
        server.stop()
