"""A video that starts from a picture begins with that picture, as well as the codec can show it."""

from __future__ import annotations

import io
import random
from pathlib import Path

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from helios.data.scenes import caption, render, sample_scenes
from helios.evaluation.metrics import psnr
from helios.media import read_video
from helios.pipeline import load

from .harness import finished
from .studio_page import quick

BELOW_THE_CODEC = 8.0
"""Decibels that the first frame may lie below the picture encoded and decoded; it moves already."""


def likeness(frame: NDArray[np.uint8], picture: NDArray[np.uint8]) -> float:
    """Decibels between two pictures ``[H, W, 3]``."""
    one, other = (torch.from_numpy(np.array(side))[None] for side in (frame, picture))
    return float(psnr(one, other))


def through_the_codec(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first of 33 frames of the standing picture, encoded and decoded by the bundled model."""
    codec = load("tiny", "cpu", "float32").codec
    still = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    with torch.no_grad():
        latents = codec.encode(still.expand(-1, -1, 33, -1, -1), torch.Generator().manual_seed(0))
        first: NDArray[np.uint8] = codec.decode_uint8(latents)[0, 0].numpy()
    return first


def test_the_first_frame_is_the_picture(address: str, tmp_path: Path) -> None:
    scene = sample_scenes(3, seed=5)[2]
    text = caption(scene, random.Random(0))
    picture = render([scene], frames=1)[0, 0].numpy()
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG")
    with httpx.Client(base_url=address, timeout=120) as client:
        file = client.post("/v1/uploads", files={"file": ("p.png", sink.getvalue())}).json()["id"]
        asked = {"prompt": text, "seed": 7, "num_frames": 1, **quick(address)}
        first = {}
        for name, start in (("from it", {"input_reference": {"file_id": file}}), ("without", {})):
            video = client.post("/v1/videos", json=asked | start).json()["id"]
            assert finished(client, video, 240)["status"] == "completed"
            path = tmp_path / "video.mp4"
            path.write_bytes(client.get(f"/v1/videos/{video}/content").content)
            first[name] = likeness(read_video(path)[0][0], picture)
    bound = likeness(through_the_codec(picture), picture) - BELOW_THE_CODEC
    assert first["without"] < bound < first["from it"]
