"""What two nodes behind one gateway must give, whatever started them."""

from __future__ import annotations

from helios.serving.ray_app import COOKIE, node_of

from .harness import Server, finished, make


def callers() -> tuple[str, str]:
    """Two keys that belong to different nodes."""
    first = "a" * 40
    other = next(
        key for key in (f"{n:040d}" for n in range(99)) if node_of(key, 2) != node_of(first, 2)
    )
    return first, other


def check_two_nodes(gateway: Server, first: str, other: str) -> None:
    """A caller keeps its node, and gets there what one server would give."""
    with gateway.client(first) as one, gateway.client(other) as two, gateway.client() as none:
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
    with gateway.live(first) as live:
        session = live.start(num_frames=66, ahead=1)["session"]
        live.until("video.chunk")
    with gateway.live(first) as live:
        live.send("session.resume", session=session, have=0)
        assert live.until("session.done")["frames"] == 66
    with gateway.live(other) as live:
        live.send("session.resume", session=session)
        while live.receive()["type"] != "error":
            pass
        assert live.messages[-1]["error"]["code"] == "session_not_found"
    nodes = sorted(path.name for path in gateway.data.glob("node-*"))
    assert nodes == ["node-0", "node-1"]
    assert all(list((gateway.data / n / "data" / "videos").iterdir()) for n in nodes)


def check_cookies(gateway: Server) -> None:
    """A caller without a key is known by a cookie, and comes back to its node."""
    with gateway.client() as one, gateway.client() as two:
        words = {}
        for client in (one, two):
            while client.get("/v1/status").status_code == 200:
                word = client.cookies[COOKIE]
                if node_of(word, 2) not in words:
                    words[node_of(word, 2)] = word
                    break
                client.cookies.clear()
        assert len(words) == 2
        mine = make(one)["id"]
        assert finished(one, mine)["status"] == "completed"
        assert one.cookies[COOKIE] in words.values()
        assert two.get(f"/v1/videos/{mine}").status_code == 404
