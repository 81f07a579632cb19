"""What two nodes behind one gateway must give, whatever started them."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from helios.serving.cluster.gateway import COOKIE, node_of

from .harness import QUICK, Server, finished, make


def callers() -> dict[str, str]:
    """Keys of three: ``one`` and ``beside`` belong to the same node, ``other`` to the second."""
    first = "a" * 40
    at = node_of(first, 2)
    more = [f"{n:040d}" for n in range(99)]
    return {
        "one": first,
        "beside": next(key for key in more if node_of(key, 2) == at),
        "other": next(key for key in more if node_of(key, 2) != at),
    }


def check_two_nodes(gateway: Server) -> None:
    """A caller keeps its node, and gets there what one server would give."""
    first, beside, other = callers().values()
    with gateway.client(first) as one, gateway.client(other) as two, gateway.client() as none:
        assert none.get("/v1/videos").status_code == 401
        mine, theirs = make(one)["id"], make(two)["id"]
        videos = [finished(one, mine), finished(two, theirs)]
        assert [video["status"] for video in videos] == ["completed", "completed"]
        assert one.get(f"/v1/videos/{theirs}").status_code == 404
        with gateway.client(beside) as third:  # at the same node, and yet not the owner
            assert third.get(f"/v1/videos/{mine}").status_code == 404
            assert third.get("/v1/videos").json()["data"] == []
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


def check_border(gateway: Server) -> None:
    """Foreign pages, other names and handshakes are decided as a server decides them."""
    key = callers()["one"]
    with gateway.client(key) as client:
        evil = {"Origin": "https://evil.example"}
        answer = client.post("/v1/videos", json=QUICK, headers=evil)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        answer = client.get("/v1/videos", headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
        ticket = client.post("/v1/realtime/tickets").json()["ticket"]
    protocols = ["helios.v1", f"ticket.{ticket}"]
    with gateway.live(subprotocols=protocols) as live:
        assert live.start(num_frames=33)["session"]
        live.until("session.done")
    wrongs: list[dict[str, Any]] = [{"subprotocols": protocols}, {"key": key, "headers": evil}, {}]
    for wrong in wrongs:
        with pytest.raises(InvalidStatus) as caught:
            gateway.live(**wrong)
        assert caught.value.response.status_code in (401, 403)


def check_cookies(gateway: Server) -> None:
    """A caller without a key is known by a cookie, and comes back to its node."""
    with gateway.client() as one, gateway.client() as two:
        words = {}
        for client in (one, two):
            while client.get("/").status_code == 200:
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
