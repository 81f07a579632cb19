"""A live client that was written for vLLM-Omni: its names, its order, and the same video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from helios.pipeline import load
from helios.serving.errors import ApiError
from helios.serving.live.omni import Omni

from .harness import PROMPT, Server
from .test_live import OTHER, offline, shown

START = {
    "type": "session.start",
    "format": "m4s",
    "prompt": PROMPT,
    "num_inference_steps": 1,
    "num_frames": 132,
    "extra_params": {"guidance_scale": 1, "seed": 3},
}


def opened(server: Server) -> ClientConnection:
    """It names no sub-protocol."""
    url = server.address.replace("http", "ws") + "/v1/realtime/video"
    return connect(url, max_size=None, compression=None, close_timeout=1, legacy=True)


def heard(socket: ClientConnection) -> dict[str, Any]:
    text = socket.recv(60)
    assert isinstance(text, str)
    message: dict[str, Any] = json.loads(text)
    assert message["type"] in {
        "video.start", "video.chunk_metadata", "session.interaction.queued", "session.pong",
        "session.done", "error",
    }  # fmt: skip
    return message


def test_its_messages_make_the_same_video(
    server: Server, tiny_random: Path, tmp_path: Path
) -> None:
    reference = load(tiny_random, "cpu", "float32")
    server.fault("slow", seconds=0.1)
    try:
        with opened(server) as socket:
            socket.send(json.dumps(START))
            begun = heard(socket)
            assert (begun["type"], begun["format"]) == ("video.start", "m4s")
            assert (begun["config"]["width"], begun["config"]["height"]) == (48, 32)
            event = {"event": {"prompt": OTHER}, "transition_chunks": 0, "event_id": "mine"}
            socket.send(json.dumps({"type": "session.interaction", "interaction": event}))
            socket.send(json.dumps({"type": "session.ping"}))
            film, chunks, others = b"", [], []
            while (message := heard(socket))["type"] != "session.done":
                assert message["type"] != "error", message
                if message["type"] == "video.chunk_metadata":
                    data = socket.recv(60)
                    assert isinstance(data, bytes)
                    assert message["byte_length"] == len(data)
                    film += data
                    chunks.append((message["generation_chunk_index"], message["num_frames"]))
                    assert message["transport_chunk_index"] == chunks[-1][0]
                else:
                    others.append((message["type"], message.get("event_id")))
    finally:
        server.fault("slow", seconds=0)
    assert (message["chunks"], message["stopped"]) == (4, False)
    assert chunks == [(number, 33) for number in range(4)]
    assert others == [("session.interaction.queued", "mine"), ("session.pong", None)]
    pictures = shown(film, tmp_path / "live.mp4")
    wanted = [
        offline(reference, tmp_path / "off.mp4", [(0, PROMPT), (lands, OTHER)], num_frames=132)
        for lands in (1, 2)
    ]
    assert any(np.array_equal(pictures, one) for one in wanted)


def test_stop_ends_it_and_mistakes_do_not(server: Server) -> None:
    with opened(server) as socket:
        socket.send(json.dumps(START | {"zoo": 1}))
        error = heard(socket)
        assert (error["type"], error["code"]) == ("error", "unknown_parameter")
        assert "zoo" in error["message"]
        socket.send(json.dumps(START | {"num_frames": 3300}))
        assert heard(socket)["type"] == "video.start"
        assert heard(socket)["type"] == "video.chunk_metadata"
        socket.recv(60)
        camera = {"event": {"multi_modal_data": {}}, "event_id": "camera"}
        socket.send(json.dumps({"type": "session.interaction", "interaction": camera}))
        socket.send(json.dumps({"type": "session.stop"}))
        kinds = []
        while (message := heard(socket))["type"] != "session.done":
            kinds.append(message["type"])
            if message["type"] == "video.chunk_metadata":
                socket.recv(60)
        assert message["stopped"]
        assert kinds.count("error") == 1


@pytest.mark.parametrize("form", ["mp4", None, 3])
def test_another_format_is_refused(form: object) -> None:
    with pytest.raises(ApiError, match="format must be m4s"):
        Omni().inwards(START | {"format": form})


def test_a_header_after_a_branch_goes_with_the_next_fragment() -> None:
    """Their clients join everything binary; each new beginning brings its own header."""
    omni = Omni()
    start = {"session": "s", "width": 48, "height": 32, "fps": 24, "first_chunk": 0}
    chunk = {"session": "s", "chunk": 0, "frames": 33}
    sent = []
    for body in (b"A", b"B"):
        told = omni.outwards("video.start", body, start)
        assert told is not None
        assert told[1] is None
        for _ in range(2):
            told = omni.outwards("video.chunk", b"-", chunk)
            assert told is not None
            sent.append(told[1])
    assert sent == [b"A-", b"-", b"B-", b"-"]
    assert omni.outwards("health", None, {}) is None
