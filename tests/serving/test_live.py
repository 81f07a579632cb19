"""The live protocol against a running server; results are held against the library."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from helios.media import VideoWriter, read_settings, read_video
from helios.pipeline import Pipeline, load

from .harness import PROMPT, QUICK, Live, Server, at_rest, wait_for

OTHER = "a blue cube spins on sand"


@pytest.fixture(scope="module")
def reference(tiny_random: Path) -> Pipeline:
    return load(tiny_random, "cpu", "float32")


def offline(
    pipeline: Pipeline, path: Path, prompt: object = PROMPT, **values: object
) -> np.ndarray:
    """The frames of the file that ``generate`` would write."""
    fields = {"steps": 1, "guidance_scale": 1.0, "seed": 3} | values
    pipeline(prompt, **fields).save(path)
    return read_video(path)[0]


def shown(data: bytes, path: Path) -> np.ndarray:
    path.write_bytes(data)
    return read_video(path)[0]


def test_the_bytes_of_a_stream_are_the_file_frame_for_frame(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    """Case A37 too: a prompt lands in a later chunk, and those before it are as without it."""
    with server.live() as live:
        live.send("session.start", **QUICK, num_frames=132, ahead=1)
        live.until("video.chunk")
        live.send("session.prompt", prompt=OTHER, transition_chunks=0)
        lands = live.until("prompt.queued")["chunk"]
        for chunk in range(1, 4):
            live.send("session.played", chunk=chunk)
        done = live.until("session.done")
    assert (done["reason"], done["chunks"], done["frames"]) == ("complete", 4, 132)
    applied = live.of("prompt.applied")
    assert [message["chunk"] for message in applied] == [lands]
    chunks = live.of("video.chunk")
    assert [message["chunk"] for message in chunks] == [0, 1, 2, 3]
    assert [message["prompt"] for message in chunks] == [
        OTHER if index >= lands else PROMPT for index in range(4)
    ]
    assert all(message["thumbnail"].startswith("data:image/jpeg;base64,") for message in chunks)
    film = shown(live.film(), tmp_path / "live.mp4")
    track = [(0, PROMPT), (lands, OTHER)]
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", track, num_frames=132))
    assert read_settings(tmp_path / "live.mp4")["seed"] == 3


def test_two_clients_take_turns_and_each_gets_what_it_gets_alone(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    server.fault("slow", seconds=0.5)  # health is told every two seconds
    try:
        with server.live() as one, server.live() as two:
            one.start(num_frames=132)
            two.start(num_frames=132, seed=4)
            one.until("session.done")
            two.until("session.done")
    finally:
        server.fault("slow", seconds=0)
    for live, seed in ((one, 3), (two, 4)):
        film = shown(live.film(), tmp_path / "live.mp4")
        alone = offline(reference, tmp_path / "alone.mp4", num_frames=132, seed=seed)
        assert np.array_equal(film, alone)
    # Both were under way at the same time, none waited for the other to end.
    assert max(message["sharing"] for message in one.of("health") + two.of("health")) == 2
    ends = [live.of("video.chunk")[-1]["timings"]["made"] for live in (one, two)]
    assert all(end > 0 for end in ends)


def test_a_third_waits_in_line_and_is_told_its_place(server: Server) -> None:
    with server.live() as one, server.live() as two, server.live() as third, server.live() as last:
        one.start(ahead=1)
        two.start(ahead=1)
        third.send("session.start", **QUICK, num_frames=33)
        assert third.until("session.queued")["place"] == 1
        last.send("session.start", **QUICK, num_frames=33)
        assert last.until("session.queued")["place"] == 2
        one.socket.close()
        third.until("session.created")
        assert last.until("session.queued")["place"] == 1
        third.until("session.done")
        two.socket.close()
        last.until("session.done")


def test_parked_and_resumed_equals_uninterrupted(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    with server.live() as live:
        session = live.start(num_frames=165, ahead=1)["session"]
        live.until("video.chunk")
    wait_for(lambda: server.metric("sessions_active") == 0)
    with server.live() as live:
        live.send("session.resume", session=session, have=0)
        live.until("session.done")
    chunks = live.of("video.chunk")
    assert [message["chunk"] for message in chunks] == list(range(5))
    assert chunks[0]["replayed"]
    assert not chunks[-1]["replayed"]
    film = shown(live.film(), tmp_path / "live.mp4")
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", num_frames=165))
    with server.client() as client:
        assert client.get(f"/v1/sessions/{session}").json()["frames"] == 165
        saved = client.get(f"/v1/sessions/{session}/content").content
    assert np.array_equal(shown(saved, tmp_path / "saved.mp4"), film)


def test_branch_shares_the_past_and_goes_on_differently(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    with server.live() as live:
        parent = live.start(num_frames=99)["session"]
        live.until("session.done")
        live.send("session.branch", chunk=1, prompt=OTHER)
        branched = live.until("session.branched")
        assert branched["parent"] == parent
        assert live.until("video.start")["first_chunk"] == 1
        live.until("session.done")
    film = shown(
        live.media[2][0] + live.media[1][1] + b"".join(live.media[2][1:]), tmp_path / "b.mp4"
    )
    track = [(0, PROMPT), (1, OTHER)]
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", track, num_frames=99))
    with server.client() as client:
        both = [client.get(f"/v1/sessions/{s}").json() for s in (parent, branched["session"])]
        saved = client.get(f"/v1/sessions/{branched['session']}/content").content
        pictures = [
            client.get(f"/v1/sessions/{s}/thumbnail").content for s in (parent, branched["session"])
        ]
    # Each shows what it alone has: the first chunk, and the one where the branch leaves.
    shown_by = [live.of("video.chunk")[number]["thumbnail"] for number in (0, 3)]
    assert [base64.b64encode(picture).decode() for picture in pictures] == [
        text.partition(",")[2] for text in shown_by
    ]
    assert [session["branched_at"] for session in both] == [None, 1]
    assert both[1]["parent"] == parent
    assert both[0]["prompts"] == [[0, PROMPT]]
    assert both[1]["prompts"] == [[0, PROMPT], [1, OTHER]]
    assert np.array_equal(shown(saved, tmp_path / "saved.mp4"), film)


def test_a_reroll_is_repeatable_and_another(server: Server, tmp_path: Path) -> None:
    films = []
    for _ in range(2):
        with server.live() as live:
            live.start(num_frames=66)
            live.until("session.done")
            live.send("session.branch", chunk=1, seed=11)
            assert live.until("session.branched")["seed"] == 11
            live.until("session.done")
            films.append((live.media[1][2], live.media[2][1]))
    assert films[0] == films[1]
    assert films[0][0] != films[0][1]


def test_extend_makes_the_longer_video_and_the_cut_chunk_whole(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    with server.live() as live:
        live.start(num_frames=50)
        live.until("session.done")
        live.send("session.extend", num_frames=49)
        extended = live.until("session.extended")
        assert (extended["chunk"], extended["num_frames"]) == (1, 99)
        assert live.until("video.start")["first_chunk"] == 1
        assert live.until("session.done")["frames"] == 99
    film = shown(
        live.media[2][0] + live.media[1][1] + b"".join(live.media[2][1:]), tmp_path / "x.mp4"
    )
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", num_frames=99))


def test_stop_then_extend_goes_on(server: Server) -> None:
    with server.live() as live:
        live.start(ahead=1)
        live.until("video.chunk")
        live.send("session.stop")
        done = live.until("session.done")
        assert done["reason"] == "stopped"
        live.send("session.extend", num_frames=33)
        assert live.until("session.extended")["chunk"] == done["chunks"]
        live.send("session.played", chunk=done["chunks"] + 5)
        assert live.until("session.done")["frames"] == done["frames"] + 33


def test_saved_states_can_be_gone_back_to(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    with server.live() as live:
        session = live.start(num_frames=99)["session"]
        live.until("session.done")
        live.send("session.save", chunk=1, name="the good one")
        saved = live.until("session.saved")
        assert (saved["chunk"], saved["name"]) == (1, "the good one")
    wait_for(lambda: server.metric("sessions_active") == 0)
    with server.live() as live:
        live.send("session.resume", session=session, have=0, chunk=1)
        live.until("session.done")
    film = shown(live.film(), tmp_path / "live.mp4")
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", num_frames=99))
    with server.client() as client:
        shape = client.get(f"/v1/sessions/{session}").json()
    assert shape["name"] == "the good one"
    assert 1 in shape["kept"]


def test_export_and_import_as_one_file(server: Server, reference: Pipeline, tmp_path: Path) -> None:
    with server.live() as live:
        session = live.start(num_frames=99, ahead=1)["session"]
        live.until("video.chunk")
    wait_for(lambda: server.metric("sessions_active") == 0)
    with server.client() as client:
        exported = client.get(f"/v1/sessions/{session}/export")
        assert exported.headers["content-disposition"].endswith(f'"{session}.helios"')
        assert client.delete(f"/v1/sessions/{session}").json()["deleted"]
        assert client.get(f"/v1/sessions/{session}").status_code == 404
        files = {"file": ("mine.helios", exported.content)}
        imported = client.post("/v1/sessions/import", files=files).json()
        broken = {"file": ("x", exported.content[:-40])}
        assert client.post("/v1/sessions/import", files=broken).status_code == 400
    with server.live() as live:
        live.send("session.resume", session=imported["id"], have=0)
        live.until("session.done")
    film = shown(live.film(), tmp_path / "live.mp4")
    assert np.array_equal(film, offline(reference, tmp_path / "off.mp4", num_frames=99))


def test_starts_from_a_picture_and_from_a_result(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    with server.client() as client:
        data = (tmp_path / "p.png").read_bytes()
        upload = client.post("/v1/uploads", files={"file": ("p.png", data)}).json()
        assert (upload["kind"], upload["width"], upload["height"]) == ("image", 60, 40)
        assert client.get(f"/v1/uploads/{upload['id']}/content").content == data
    with server.live() as live:
        live.start(num_frames=33, input_reference={"file_id": upload["id"]}, motion=0.3)
        session = live.until("session.done")["session"]
    film = shown(live.film(), tmp_path / "live.mp4")
    wanted = offline(reference, tmp_path / "off.mp4", num_frames=33, image=picture, motion=0.3)
    assert np.array_equal(film, wanted)
    before = wait_for_content(server, session, tmp_path / "before.mp4")
    with server.live() as live:
        live.start(num_frames=33, input_reference={"session_id": session})
        live.until("session.done")
    film = shown(live.film(), tmp_path / "live.mp4")
    wanted = offline(reference, tmp_path / "off2.mp4", num_frames=33, video=before)
    assert np.array_equal(film, wanted)


def wait_for_content(server: Server, session: str, path: Path) -> np.ndarray:
    wait_for(lambda: server.metric("sessions_active") == 0)
    with server.client() as client:
        return shown(client.get(f"/v1/sessions/{session}/content").content, path)


def test_ahead_holds_generation_back_until_it_is_played(server: Server) -> None:
    with server.live() as live:
        live.start(ahead=1)
        chunks = [live.until("video.chunk")["chunk"] for _ in range(2)]
        before = server.metric("chunks_generated_total")
        live.until("health")
        live.until("health")
        assert server.metric("chunks_generated_total") == before
        live.send("session.played", chunk=1)
        chunks.append(live.until("video.chunk")["chunk"])
    assert chunks == [0, 1, 2]


def test_a_writer_and_the_wire_code_alike(reference: Pipeline, tmp_path: Path) -> None:
    video = reference(PROMPT, num_frames=40, steps=1, seed=1)
    with VideoWriter(tmp_path / "a.mp4", 48, 32, 24, fragment_frames=33) as writer:
        writer.write(video.frames)
    assert np.array_equal(
        read_video(tmp_path / "a.mp4")[0], read_video(video.save(tmp_path / "b.mp4"))[0]
    )


def test_a_prompt_lands_where_it_is_asked_to_and_can_be_moved(
    server: Server, reference: Pipeline, tmp_path: Path
) -> None:
    with server.live() as live:
        session = live.start(num_frames=198, ahead=1)["session"]
        live.until("video.chunk")
        for chunk in (3, 5, 4):
            live.send("session.prompt", prompt=OTHER, transition_chunks=0, chunk=chunk)
            assert live.until("prompt.queued")["chunk"] == chunk
        live.send("session.played", chunk=9)
        live.until("session.done")
        assert [message["chunk"] for message in live.of("prompt.applied")] == [4]
        assert not live.of("prompt.superseded")  # it is the same one, moved
    film = shown(live.film(), tmp_path / "live.mp4")
    prompts = [(0, PROMPT), (4, OTHER)]
    wanted = offline(reference, tmp_path / "off.mp4", prompt=prompts, num_frames=198)
    assert np.array_equal(film, wanted)
    with server.client() as client:
        told = client.get(f"/v1/sessions/{session}").json()["prompts"]
        assert told == [list(part) for part in prompts]


def test_errors_change_nothing(server: Server) -> None:
    with server.live() as live:
        live.start(ahead=1)
        live.until("video.chunk")
        live.until("video.chunk")
        for message, code in (
            ({"type": "session.branch", "chunk": 99}, "chunk_not_kept"),
            ({"type": "session.prompt", "prompt": "a\u0000b"}, "invalid_prompt"),
            ({"type": "session.lora", "loras": [{"name": "none"}]}, "invalid_value"),
            ({"type": "session.prompt"}, "missing_required_parameter"),
            ({"type": "session.prompt", "prompt": "x", "place": 3}, "unknown_parameter"),
            ({"type": "session.resume", "session": "session_" + "0" * 32}, "session_not_found"),
        ):
            fields = dict(message)
            live.send(str(fields.pop("type")), event_id=code, **fields)
            error = refused(live)
            assert error["error"]["code"] == code, error
            assert error["error"]["event_id"] == code
            assert not error["fatal"]
            if code == "unknown_parameter":
                live.send("session.ping", event_id=code)
                assert refused(live)["error"]["code"] == "duplicate_event"


def refused(live: Live) -> dict:
    while (message := live.receive())["type"] != "error":
        pass
    return message


NEEDED = (
    "jobs_active", "queue_depth", "sessions_active", "chunks_generated_total", "jobs_total",
    "bad_samples_total", "nonfinite_steps_total", "worker_restarts_total", "ws_dropped_total",
    "rss_bytes", "accelerator_allocated_bytes",
)  # fmt: skip


def test_figures_tell_how_long_a_wish_took_to_be_seen(server: Server) -> None:
    names = ("ttff_seconds_count", "prompt_apply_latency_seconds_count", "nonfinite_steps_total")
    with server.client() as client:
        text = client.get("/metrics").text
    for name in NEEDED:
        assert f"\n# HELP {name} " in f"\n{text}", name
    at_rest(server)
    before = [server.metric(name) for name in names]
    with server.live() as live:
        live.start(num_frames=132, ahead=1)
        live.until("video.chunk")
        live.send("session.prompt", prompt=OTHER, transition_chunks=0)
        live.until("prompt.queued")
        live.send("session.played", chunk=3)
        live.until("session.done")
        server.fault("non_finite")
        live.send("session.extend", num_frames=33)
        while live.receive()["type"] != "error":
            pass
        assert live.messages[-1]["error"]["code"] == "non_finite_output"
    assert [server.metric(name) for name in names] == [count + 1 for count in before]
    assert server.metric("realtime_factor") > 0
    assert 0 < server.metric("prompt_apply_latency_seconds_sum") < 60
