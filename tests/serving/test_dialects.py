"""Requests as other video servers and the official client write them, and the routes they know."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from helios.media import read_settings, read_video
from helios.serving.dialects import translated
from helios.serving.errors import ApiError, from_job
from helios.serving.jobs.spritesheet import MOST_TILES, spritesheet
from helios.serving.protocol import CreateVideo
from helios.serving.web.bodies import checked, form_values

from .harness import PROMPT, QUICK, Server, finished, make, wait_for
from .test_border import film, picture, refused

# The client says at every call that the service it was made for closes.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
SMALL = {"prompt": PROMPT, "num_frames": 1, "seed": 3, "guidance_scale": 1}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"num_inference_steps": 3}, {"steps": 3}),
        ({"lora": {"name": "a", "scale": 2}}, {"loras": [{"name": "a", "scale": 2}]}),
        ({"lora": [{"name": "a"}]}, {"loras": [{"name": "a"}]}),
        ({"image_reference": {"image_url": "u"}}, {"input_reference": {"image_url": "u"}}),
        ({"video_reference": {"video_url": "u"}}, {"input_reference": {"video_url": "u"}}),
        ({"input_reference": "u"}, {"input_reference": {"image_url": "u"}}),
        ({"extra_params": {"motion": 0.5}, "fps": 8}, {"motion": 0.5, "fps": 8}),
        (
            {
                "extra_params": {
                    "pyramid_num_inference_steps_list": [2, 2, 2],
                    "is_amplify_first_chunk": True,
                }
            },
            {"steps": [2, 2, 2], "amplify_first_chunk": True},
        ),
        ({"extra_params": None}, {}),
    ],
)
def test_their_names_become_ours(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    before = json.dumps(theirs)
    assert translated(theirs) == ours
    assert json.dumps(theirs) == before


@pytest.mark.parametrize(
    ("values", "code", "says"),
    [
        ({"steps": 1, "num_inference_steps": 1}, "invalid_value", "steps"),
        ({"lora": {"name": "a"}, "loras": []}, "invalid_value", "loras"),
        ({"extra_params": {"seed": 1}, "seed": 1}, "invalid_value", "seed"),
        ({"extra_params": [1]}, "invalid_value", "extra_params"),
        ({"extra_params": {"zoo": 1}}, "unknown_parameter", "zoo"),
        ({"lora": {"name": "a", "path": "/etc"}}, "unknown_parameter", "path"),
        ({"num_inference_steps": 0}, "invalid_value", "steps"),
        ({"extra_params": {"extra_params": {}}}, "unknown_parameter", "extra_params"),
    ],
)
def test_they_meet_the_same_bounds(values: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        checked({"prompt": PROMPT} | values, CreateVideo)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert says in caught.value.message


def test_a_form_says_what_json_says() -> None:
    """Every nested value, as the official client writes it."""
    from openai._qs import Querystring

    asked: dict[str, Any] = {
        "prompt": PROMPT,
        "steps": [2, 2, 1],
        "loras": [{"name": "a", "scale": 0.5}, {"name": "b"}, {"name": "c", "scale": 2}],
        "input_reference": {"file_id": "file_" + "0" * 32},
        "anti_drift": True,
        "motion": 0.25,
        "extra_params": {"amplify_first_chunk": False, "shift": "consistent"},
    }
    pairs = Querystring(array_format="brackets").stringify_items(asked)
    plain = {name: text for name, text in pairs if "[" not in name}
    nested = [(name, text) for name, text in pairs if "[" in name]
    assert checked(form_values(plain, nested), CreateVideo) == checked(asked, CreateVideo)


@pytest.mark.parametrize("name", ["steps[", "steps]", "[x]", "steps[]x", "a[b][c][d]", "a[][]"])
def test_brackets_that_say_nothing_are_unknown_fields(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        checked(form_values({"prompt": PROMPT}, [(name, "1")]), CreateVideo)
    assert caught.value.code == "unknown_parameter"


def test_the_official_client_sends_what_is_nested(server: Server, client: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            api.videos.create(prompt=PROMPT, extra_body={"steps": [1, 1, 1]})
        assert "steps must be one number" in str(caught.value)  # it was understood
        video = api.videos.create(prompt=PROMPT, extra_body=SMALL | {"steps": [1]})
    assert finished(client, video.id)["settings"]["steps"] == 1


def test_a_request_of_another_server_gives_the_same_video(
    client: httpx.Client, tmp_path: Path
) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    theirs = {
        "prompt": PROMPT,
        "num_inference_steps": "1",
        "num_frames": "1",
        "extra_params": json.dumps({"guidance_scale": 1, "seed": 3}),
        "image_reference": json.dumps({"image_url": url}),
    }
    asked = client.post("/v1/videos", files={name: (None, text) for name, text in theirs.items()})
    assert asked.status_code == 200, asked.text
    ours = SMALL | {"steps": 1, "input_reference": {"image_url": url}}
    shown = []
    for number, answer in enumerate((asked, client.post("/v1/videos", json=ours))):
        video = finished(client, answer.json()["id"])
        assert video["status"] == "completed"
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(client.get(f"/v1/videos/{video['id']}/content").content)
        shown.append(read_video(path)[0].tobytes())
    assert shown[0] == shown[1]


def test_a_picture_in_a_field_may_be_as_large_as_one_in_json(client: httpx.Client) -> None:
    large = base64.b64encode(film(20, 320)).decode() + "A" * (300 << 10)
    url = f"data:video/mp4;base64,{large}"
    field = {"video_reference": (None, json.dumps({"video_url": url})), "prompt": (None, PROMPT)}
    answer = client.post("/v1/videos", files=field | {"num_frames": (None, "1")})
    assert answer.status_code != 400 or answer.json()["error"]["code"] != "invalid_multipart"
    answer = client.post("/v1/videos", files={"prompt": (None, "a" * (65 << 10))})
    refused(answer, 400, "invalid_multipart")


def test_sync_answers_with_the_video(client: httpx.Client, tmp_path: Path) -> None:
    answer = client.post("/v1/videos/sync", json=QUICK | {"num_frames": 34})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    (tmp_path / "v.mp4").write_bytes(answer.content)
    assert len(read_video(tmp_path / "v.mp4")[0]) == 34
    assert read_settings(tmp_path / "v.mp4")["seed"] == 3
    video = client.get(f"/v1/videos/{answer.headers['x-video-id']}").json()
    assert video["status"] == "completed"
    refused(client.post("/v1/videos/sync", json={"prompt": ""}), 400, "invalid_prompt")


def test_sync_says_why_there_is_no_video(client: httpx.Client, server: Server) -> None:
    server.fault("out_of_memory")
    answer = client.post("/v1/videos/sync", json=QUICK | {"num_frames": 33})
    refused(answer, 503, "out_of_memory")
    for code, status in (("cancelled", 409), ("internal_error", 500), ("worker_crashed", 503)):
        assert from_job({"code": code, "message": "x"}).status == status


def test_who_leaves_a_sync_request_cancels_it(client: httpx.Client, server: Server) -> None:
    server.fault("slow", seconds=0.3)
    try:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/videos/sync", json=QUICK | {"num_frames": 330}, timeout=1)
        wait_for(lambda: server.metric("jobs_active") == 0, 20, "the cancellation")
    finally:
        server.fault("slow", seconds=0)
    newest = client.get("/v1/videos?limit=1").json()["data"]
    assert not newest or newest[0]["num_frames"] != 330


def test_a_spritesheet_shows_the_beginning_of_every_chunk(client: httpx.Client) -> None:
    video = make(client, num_frames=100)
    path = f"/v1/videos/{video['id']}/content"
    refused(client.get(path, params={"variant": "comic"}), 400, "invalid_value", "variant")
    assert finished(client, video["id"])["status"] == "completed"
    answers = [client.get(path, params={"variant": "spritesheet"}) for _ in range(2)]
    assert answers[0].headers["content-type"] == "image/jpeg"
    assert answers[0].content == answers[1].content
    sheet = Image.open(io.BytesIO(answers[0].content))
    assert sheet.size == (4 * 48, 32)  # frames 0, 33, 66 and 99


@pytest.mark.parametrize("frames", [1, 11, MOST_TILES, MOST_TILES + 1, 400])
def test_a_sheet_of_a_long_video_shows_every_second_or_third(tmp_path: Path, frames: int) -> None:
    import av

    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 1
        for number in range(frames):
            image = Image.new("RGB", (32, 32), (number % 256, 0, 128))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    spritesheet(path, tmp_path / "s.jpg")
    tiles = frames
    while tiles > MOST_TILES:
        tiles = math.ceil(tiles / 2)
    width, height = Image.open(tmp_path / "s.jpg").size
    assert (width, height) == (32 * min(10, tiles), 32 * math.ceil(tiles / 10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.jpg", "v.mp4"]


def test_a_file_that_is_no_video_has_no_sheet(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"nothing")
    with pytest.raises(OSError, match="cannot be read"):
        spritesheet(tmp_path / "v.mp4", tmp_path / "s.jpg")
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_a_model_is_found_by_either_name(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"][0]["id"]
    assert client.get(f"/v1/models/{listed}").json()["id"] == listed
    refused(client.get("/v1/models/somebody/else"), 404, "model_not_found")
