"""Requirement 31: whatever was made with a key exists for that key alone, on every route."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import KEY, OTHER
from .harness import QUICK, Server, finished, make, wait_for
from .test_border import census, picture, refused, upload

BODIES: dict[str, Any] = {"/v1/videos/{video_id}/remix": {"prompt": "a blue cube"}}
"""What a route needs so that only the owner can be the reason of a refusal."""


@pytest.fixture(scope="module")
def mine(keyed: Server) -> dict[str, str]:
    """A finished video, an upload and a parked session of the first key, by path parameter."""
    with keyed.client(KEY) as client:
        video = make(client, num_frames=1)["id"]
        assert finished(client, video)["status"] == "completed"
        file = upload(client, picture()).json()["id"]
    with keyed.live(KEY) as live:
        session = live.start(num_frames=33)["session"]
        live.until("session.done")
    wait_for(lambda: _parked(keyed, session), 20, "the parking")
    return {"video_id": video, "file_id": file, "session_id": session}


def _parked(server: Server, session: str) -> bool:
    with server.client(KEY) as client:
        return bool(client.get(f"/v1/sessions/{session}").json()["status"] == "parked")


def test_every_route_that_names_a_thing_denies_it_to_others(
    keyed: Server, mine: dict[str, str]
) -> None:
    """The answer is the one for a thing that never was; nothing is changed by asking."""
    unknown = {name: f"{item.partition('_')[0]}_{'0' * 32}" for name, item in mine.items()}
    tried = 0
    with keyed.client(OTHER) as other:
        for method, path in sorted(census()):
            names = [name for name in mine if f"{{{name}}}" in path]
            if not names:
                continue
            tried += 1
            answers = [
                other.request(method, path.format(**ids), json=BODIES.get(path))
                for ids in (mine, unknown)
            ]
            assert [answer.status_code for answer in answers] == [404, 404], (method, path)
            assert method == "HEAD" or answers[0].json() == answers[1].json()
    assert tried >= 14
    with keyed.client(KEY) as own:
        for kind, name in zip(("videos", "uploads", "sessions"), mine.values(), strict=True):
            assert own.get(f"/v1/{kind}/{name}/content").status_code == 200


def test_no_list_shows_what_belongs_to_others(keyed: Server, mine: dict[str, str]) -> None:
    for kind, name in zip(("videos", "uploads", "sessions"), mine.values(), strict=True):
        for key, there in ((KEY, True), (OTHER, False)):
            with keyed.client(key) as client:
                ids = {item["id"] for item in client.get(f"/v1/{kind}").json()["data"]}
            assert (name in ids) is there


def test_nothing_is_made_from_what_belongs_to_others(keyed: Server, mine: dict[str, str]) -> None:
    with keyed.client(OTHER) as other:
        for name, item in mine.items():
            answer = other.post("/v1/videos", json=QUICK | {"input_reference": {name: item}})
            assert answer.status_code in (400, 404), name
            assert answer.json()["error"]["code"].endswith("_not_found"), answer.text
        answer = other.post("/v1/videos/extensions", json={"video": {"id": mine["video_id"]}})
        refused(answer, 404, "video_not_found")
        assert other.get("/v1/videos").json()["data"] == []
    for message in (
        {"session": mine["session_id"]},
        {"session": mine["session_id"], "have": 0, "chunk": 0},
    ):
        with keyed.live(OTHER) as live:
            live.send("session.resume", **message)
            while live.receive()["type"] != "error":
                pass
            assert live.messages[-1]["error"]["code"] == "session_not_found"


def test_the_same_idempotency_key_of_another_is_another_job(keyed: Server) -> None:
    def post(key: str) -> str:
        with keyed.client(key) as client:
            answer: httpx.Response = client.post(
                "/v1/videos",
                json=QUICK | {"num_frames": 1},
                headers={"Idempotency-Key": "one and the same"},
            )
            assert answer.status_code == 200
            name: str = answer.json()["id"]
            assert finished(client, name)["status"] == "completed"
            return name

    first = post(KEY)
    assert post(KEY) == first
    assert post(OTHER) != first
    with keyed.client(OTHER) as other:
        for video in other.get("/v1/videos").json()["data"]:
            other.delete(f"/v1/videos/{video['id']}")
