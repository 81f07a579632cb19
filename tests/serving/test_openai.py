"""The official client runs the whole life cycle; results are held against the library."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from openai.types import Video

from helios.media import read_video
from helios.pipeline import load

from .harness import PROMPT, QUICK, Server, finished, make, running, wait_for
from .test_border import film

EXTRA = {"steps": 1, "guidance_scale": 1, "seed": 3, "num_frames": 66}
OTHER = "a blue cube spins on sand"
# The client says at every call that the service it was made for closes.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0) as client:
        yield client


def frames(data: bytes, path: Path) -> np.ndarray:
    path.write_bytes(data)
    return read_video(path)[0]


def test_the_whole_life_cycle(
    api: openai.OpenAI, server: Server, tiny_random: Path, tmp_path: Path
) -> None:
    assert [model.id for model in api.models.list()] == [tiny_random.name]
    video = api.videos.create_and_poll(prompt=PROMPT, extra_body=EXTRA, poll_interval_ms=50)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert video.size == "48x32"
    assert float(video.seconds) == 66 / 24
    reference = load(tiny_random, "cpu", "float32")
    fields = {"steps": 1, "guidance_scale": 1.0, "seed": 3}
    saved = reference(PROMPT, num_frames=66, **fields).save(tmp_path / "off.mp4")
    content = api.videos.download_content(video.id).read()
    assert np.array_equal(frames(content, tmp_path / "v.mp4"), read_video(saved)[0])
    picture = api.videos.download_content(video.id, variant="thumbnail").read()
    assert picture[:3] == b"\xff\xd8\xff"
    sheet = api.videos.download_content(video.id, variant="spritesheet").read()
    assert sheet[:3] == b"\xff\xd8\xff"
    assert sheet != picture
    part = {"Range": "bytes=0-99"}
    piece = api.videos.with_raw_response.download_content(video.id, extra_headers=part)
    assert (piece.status_code, piece.content) == (206, content[:100])

    remix = api.videos.remix(video.id, prompt=OTHER)
    assert remix.remixed_from_video_id == video.id
    assert api.videos.poll(remix.id, poll_interval_ms=50).status == "completed"
    wanted = reference(OTHER, num_frames=66, **fields).save(tmp_path / "remix.mp4")
    content = api.videos.download_content(remix.id).read()
    assert np.array_equal(frames(content, tmp_path / "r.mp4"), read_video(wanted)[0])

    # The client's own method cannot send an id, only a file; its transport can.
    body = {"prompt": OTHER, "seconds": "2", "video": {"id": video.id}}
    longer = api.post("/videos/extensions", body=body, cast_to=Video)
    longer = api.videos.poll(longer.id, poll_interval_ms=50)
    assert (longer.status, float(longer.seconds)) == ("completed", (66 + 48) / 24)
    track = [(0, PROMPT), (2, OTHER)]
    wanted = reference(track, num_frames=114, **fields).save(tmp_path / "long.mp4")
    content = api.videos.download_content(longer.id).read()
    assert np.array_equal(frames(content, tmp_path / "l.mp4"), read_video(wanted)[0])

    listed = [item.id for item in api.videos.list(limit=2)]
    assert listed[:2] == [longer.id, remix.id]
    assert video.id in listed  # the client follows the pages
    for item in (video, remix, longer):
        assert api.videos.delete(item.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.videos.retrieve(video.id)


def test_a_picture_as_file_and_as_data_url(api: openai.OpenAI, tmp_path: Path) -> None:
    import base64

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    inline = api.post(
        "/videos",
        body={"prompt": PROMPT, "input_reference": {"image_url": url}, **EXTRA},
        cast_to=Video,
    )
    made = [
        api.videos.create_and_poll(
            prompt=PROMPT, input_reference=tmp_path / "p.png", extra_body=EXTRA, poll_interval_ms=50
        ),
        api.videos.poll(inline.id, poll_interval_ms=50),
    ]
    assert [video.status for video in made] == ["completed", "completed"]
    one, two = (api.videos.download_content(video.id).read() for video in made)
    assert np.array_equal(frames(one, tmp_path / "1.mp4"), frames(two, tmp_path / "2.mp4"))


def test_a_clip_of_ones_own_is_extended(api: openai.OpenAI, client: httpx.Client) -> None:
    video = finished(client, make(client)["id"])
    content = client.get(f"/v1/videos/{video['id']}/content").content
    longer = api.videos.extend(
        prompt=OTHER, seconds="1", video=("clip.mp4", content), extra_body={"steps": 1}
    )
    longer = api.videos.poll(longer.id, poll_interval_ms=50)
    assert (longer.status, float(longer.seconds)) == ("completed", 1.0)


def test_a_video_is_edited_by_its_file_or_its_name(api: openai.OpenAI, tmp_path: Path) -> None:
    """What is made is the remix: the settings and the noise of the video, other words."""
    video = api.videos.create_and_poll(prompt=PROMPT, extra_body=EXTRA)
    content = api.videos.download_content(video.id).read()
    body = {"prompt": OTHER, "video": {"id": video.id}}
    asked = [
        api.videos.remix(video.id, prompt=OTHER),
        api.videos.edit(prompt=OTHER, video=("clip.mp4", content)),
        api.post("/videos/edits", body=body, cast_to=Video),
    ]
    made = []
    for number, item in enumerate(asked):
        assert item.prompt == OTHER
        assert api.videos.poll(item.id).status == "completed"
        path = tmp_path / f"{number}.mp4"
        made.append(frames(api.videos.download_content(item.id).read(), path))
    assert len(made[0]) == EXTRA["num_frames"]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])
    assert not np.array_equal(made[0], frames(content, tmp_path / "before.mp4"))


def test_only_what_helios_made_is_edited(api: openai.OpenAI, client: httpx.Client) -> None:
    uploads = len(client.get("/v1/uploads").json()["data"])
    with pytest.raises(openai.BadRequestError) as caught:
        api.videos.edit(prompt=OTHER, video=("clip.mp4", film(4)))
    assert (caught.value.code, caught.value.param) == ("invalid_media", "video")
    assert len(client.get("/v1/uploads").json()["data"]) == uploads
    for ask in (
        lambda: api.videos.create_character(name="somebody", video=b"nothing"),
        lambda: api.videos.get_character("somebody"),
    ):
        with pytest.raises(openai.NotFoundError) as unknown:
            ask()
        assert unknown.value.code == "not_supported"


def test_every_method_of_the_client_has_a_route() -> None:
    """Of the version that is installed; a new method shall be noticed."""
    known = {
        "create", "create_and_poll", "create_character", "delete", "download_content", "edit",
        "extend", "get_character", "list", "poll", "remix", "retrieve",
    }  # fmt: skip
    methods = {name for name in vars(openai.resources.Videos) if not name.startswith(("_", "with"))}
    assert methods - known == set()


def test_the_client_is_told_when_to_ask_again(client: httpx.Client, server: Server) -> None:
    server.fault("slow", seconds=0.2)
    video = make(client)
    asked = client.get(f"/v1/videos/{video['id']}")
    server.fault("slow", seconds=0)
    assert asked.json()["status"] in ("queued", "in_progress")
    assert 0 < int(asked.headers["openai-poll-after-ms"]) <= 1000
    finished(client, video["id"])
    done = client.get(f"/v1/videos/{video['id']}")
    assert "openai-poll-after-ms" not in done.headers


def test_the_client_tells_refusals_apart(
    api: openai.OpenAI, server: Server, keyed: Server, client: httpx.Client
) -> None:
    """By the class that it raises, with our code and the field that is wrong."""

    def refusal(kind: type[openai.APIStatusError], ask: Callable[[], object]) -> tuple[str, str]:
        with pytest.raises(kind) as caught:
            ask()
        assert type(caught.value) is kind
        assert caught.value.request_id
        return str(caught.value.code), str(caught.value.param)

    def asked(**values: object) -> Callable[[], object]:
        return lambda: api.videos.create(**{"prompt": PROMPT} | values)  # type: ignore[arg-type]

    bad = openai.BadRequestError
    assert refusal(bad, asked(prompt=" ")) == ("invalid_prompt", "prompt")
    assert refusal(bad, asked(size="641x384")) == ("invalid_value", "size")
    assert refusal(bad, asked(seconds="never")) == ("invalid_value", "seconds")
    assert refusal(bad, asked(model="sora-2")) == ("invalid_value", "model")
    assert refusal(bad, asked(extra_body={"num_framez": 3}))[0] == "unknown_parameter"
    assert refusal(bad, asked(input_reference=b"no picture")) == (
        "unsupported_media",
        "input_reference",
    )
    gone = "video_" + "0" * 32
    for ask in (
        lambda: api.videos.retrieve(gone),
        lambda: api.videos.delete(gone),
        lambda: api.videos.download_content(gone),
        lambda: api.videos.remix(gone, prompt=OTHER),
        lambda: api.models.retrieve("sora-2"),
    ):
        assert refusal(openai.NotFoundError, ask)[0] in ("video_not_found", "model_not_found")
    server.fault("slow", seconds=0.3)
    try:
        video = make(client)["id"]
        early = refusal(openai.ConflictError, lambda: api.videos.download_content(video))
    finally:
        server.fault("slow", seconds=0)
    assert early[0] == "video_not_ready"
    assert finished(client, video)["status"] == "completed"
    stranger = openai.OpenAI(base_url=f"{keyed.address}/v1", api_key="wrong", max_retries=0)
    with stranger:
        told = refusal(openai.AuthenticationError, lambda: stranger.videos.list())
    assert told[0] == "invalid_api_key"
    elsewhere = {"Origin": "https://evil.example"}
    foreign = refusal(openai.PermissionDeniedError, asked(extra_headers=elsewhere))
    assert foreign[0] == "origin_not_allowed"


def test_a_full_queue_is_a_rate_limit(tiny_random: Path, tmp_path: Path) -> None:
    with (
        running(tiny_random, tmp_path / "data", ("--limit", "queue=0")) as small,
        openai.OpenAI(base_url=f"{small.address}/v1", api_key="any", max_retries=0) as own,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        own.videos.create(prompt=PROMPT)
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) > 0


async def _asynchronous(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any") as own:
        video = await own.videos.create_and_poll(prompt=PROMPT, extra_body=EXTRA)
        assert video.status == "completed"
        assert video.id in [item.id async for item in own.videos.list(limit=1)]
        async with own.videos.with_streaming_response.download_content(video.id) as answer:
            assert b"ftyp" in b"".join([piece async for piece in answer.iter_bytes()])[:12]
        assert (await own.videos.delete(video.id)).deleted


def test_the_asynchronous_client_runs_it_too(server: Server) -> None:
    asyncio.run(_asynchronous(server.address))


def test_named_sizes_are_taken_to_the_nearest_legal_one(client: httpx.Client) -> None:
    # Only accepted, never made: such a size takes a while.
    body = QUICK | {"num_frames": 1, "size": "1792x1024"}
    video = client.post("/v1/videos", json=body).json()
    client.delete(f"/v1/videos/{video['id']}")
    width, height = (int(side) for side in video["size"].split("x"))
    assert width * height <= 921_600
    assert width % 16 == height % 16 == 0
    assert video["warnings"] == [f"size 1792x1024 was taken as {width}x{height}"]


def test_ranges_give_their_part(client: httpx.Client) -> None:
    video = finished(client, make(client)["id"])
    path = f"/v1/videos/{video['id']}/content"
    whole = client.get(path)
    assert whole.headers["accept-ranges"] == "bytes"
    assert f'filename="{video["id"]}.mp4"' in whole.headers["content-disposition"]
    size = len(whole.content)
    for asked, part in (
        ("bytes=0-99", whole.content[:100]),
        ("bytes=100-", whole.content[100:]),
        ("bytes=-7", whole.content[-7:]),
        (f"bytes={size - 3}-{size + 50}", whole.content[-3:]),
    ):
        answer = client.get(path, headers={"Range": asked})
        assert answer.status_code == 206
        assert answer.content == part
        assert answer.headers["content-range"].endswith(f"/{size}")
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == size
    head = client.head(path, headers={"Range": "bytes=0-99"})
    assert (head.status_code, head.headers["content-length"]) == (206, "100")
    assert client.get(path, headers={"Range": f"bytes={size}-"}).status_code == 416
    for ignored in ("bytes=5-2", "lines=1-2", "bytes=0-1,5-6", "bytes=-"):
        assert client.get(path, headers={"Range": ignored}).status_code == 200


def test_events_tell_every_chunk_and_the_end(client: httpx.Client) -> None:
    video = make(client, num_frames=99)
    with client.stream("GET", f"/v1/videos/{video['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events[-1:]] == ["video.completed"]
    progress = [event for event in events if event["type"] == "video.progress"]
    assert [event["chunk"] for event in progress] == list(range(len(progress)))
    assert events[-1]["progress"] == 100


def test_the_stream_grows_and_is_the_file(
    client: httpx.Client, server: Server, tmp_path: Path
) -> None:
    server.fault("slow", seconds=0.2)
    video = make(client, num_frames=99)
    with client.stream("GET", f"/v1/videos/{video['id']}/stream") as answer:
        data = b""
        for piece in answer.iter_bytes():
            if not data:
                status = client.get(f"/v1/videos/{video['id']}").json()["status"]
                assert status in ("queued", "in_progress")
            data += piece
    server.fault("slow", seconds=0)
    assert finished(client, video["id"])["status"] == "completed"
    content = client.get(f"/v1/videos/{video['id']}/content").content
    assert np.array_equal(frames(data, tmp_path / "s.mp4"), frames(content, tmp_path / "c.mp4"))
    again = client.get(f"/v1/videos/{video['id']}/stream").content
    assert again == content


def test_cancel_ends_the_job_and_keeps_the_record(client: httpx.Client, server: Server) -> None:
    server.fault("slow", seconds=0.3)
    running, queued = make(client, num_frames=330), make(client)
    wait_for(lambda: client.get(f"/v1/videos/{running['id']}").json()["status"] == "in_progress")
    for video in (running, queued):
        answer = client.post(f"/v1/videos/{video['id']}/cancel").json()
        assert (answer["status"], answer["error"]["code"]) == ("failed", "cancelled")
    server.fault("slow", seconds=0)
    assert not list((server.data / "videos" / running["id"]).iterdir())
    assert finished(client, make(client)["id"])["status"] == "completed"


def test_the_same_key_is_the_same_job(client: httpx.Client) -> None:
    """Also for those who ask again before the first answer, and beside other keys."""
    body = QUICK | {"num_frames": 33}

    def ask(key: str) -> str:
        answer = client.post("/v1/videos", json=body, headers={"Idempotency-Key": key})
        return str(answer.json()["id"])

    with ThreadPoolExecutor(8) as pool:
        mine = list(pool.map(ask, ["mine"] * 8))
    assert len(set(mine)) == 1
    assert ask("mine") == mine[0]
    assert ask("another") != mine[0]


def test_deleted_at_any_moment_it_is_gone(client: httpx.Client, server: Server) -> None:
    """Requirement 43: also when the deletion meets the completion."""
    for step in range(24):
        video = make(client)
        time.sleep(0.012 * step)
        assert client.delete(f"/v1/videos/{video['id']}").json()["deleted"]
        assert client.get(f"/v1/videos/{video['id']}").status_code == 404
        assert not (server.data / "videos" / video["id"]).exists()
    assert finished(client, make(client)["id"])["status"] == "completed"


def test_the_openapi_document_names_every_route(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {"/v1/videos", "/v1/videos/{video_id}", "/v1/uploads", "/v1/sessions"} <= set(
        document["paths"]
    )
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
