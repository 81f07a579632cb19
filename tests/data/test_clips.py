import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from helios.data import ClipConfig, ClipLatents, read_clips, write_latents
from helios.distributed import World
from helios.errors import DataError, InputError
from helios.media import VideoWriter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three videos of two sections, with their captions beside them."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in ("ball", "cone", "cube"):
        with VideoWriter(folder / f"{name}.mp4", 64, 48, 24, {}) as writer:
            writer.write(rng.integers(0, 255, (66, 48, 64, 3), dtype=np.uint8))
        (folder / f"{name}.txt").write_text(f"a red\n {name}\n")
    return folder


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, pipeline, videos):
    out = tmp_path_factory.mktemp("latents") / "shards"
    config = ClipConfig(height=32, width=48, sections=2, shard=2)
    parts = (pipeline.codec, pipeline.text_encoder, read_clips(videos))
    write_latents(*parts, config, out, World(device=CPU), lambda _: None)
    return out


def open_clips(folder, pipeline, **changes):
    wanted = {
        "size": (32, 48),
        "sections": 2,
        "codec": pipeline.codec.config,
        "text_dim": pipeline.text_encoder.dim,
        "batch_size": 3,
        "device": CPU,
    }
    clips = ClipLatents(folder, **{**wanted, **changes})
    clips.prepare()
    return clips


def test_a_folder_of_videos_has_its_captions_beside_them(videos):
    clips = read_clips(videos)
    assert [clip.video.name for clip in clips] == ["ball.mp4", "cone.mp4", "cube.mp4"]
    assert [clip.caption for clip in clips] == ["a red ball", "a red cone", "a red cube"]


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no videos"):
        read_clips(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"video")
    with pytest.raises(InputError, match=r"write it to a\.txt"):
        read_clips(tmp_path)


def test_a_batch_is_clips_with_the_embeddings_of_their_own_captions(encoded, pipeline):
    clips = open_clips(encoded, pipeline)
    assert clips.captions(2) == ["a red ball", "a red cone"]
    text = pipeline.text_encoder.encode(clips.captions(3))
    assert torch.equal(clips.first_text(), text[0].half())
    batch = clips.batch()
    assert batch.latents.shape == (3, 16, 18, 4, 6)
    distances = torch.cdist(batch.text.float().flatten(1), text.flatten(1))
    assert sorted(distances.argmin(dim=1).tolist()) == [0, 1, 2]
    assert distances.amin() < 1e-2


def test_fewer_sections_are_the_beginning_of_every_clip(encoded, pipeline):
    both, first = (open_clips(encoded, pipeline, sections=n).batch() for n in (2, 1))
    assert torch.equal(both.latents[:, :, :9], first.latents)


def test_ranks_share_the_clips(encoded, pipeline):
    parts = [
        open_clips(encoded, pipeline, batch_size=1, rank=rank, ranks=3).batch() for rank in range(3)
    ]
    found = torch.cat([part.latents for part in parts])
    whole = open_clips(encoded, pipeline).batch().latents
    assert torch.equal(found.flatten(1).sum(1).sort().values, whole.flatten(1).sum(1).sort().values)


def test_clips_for_something_else_are_refused(encoded, pipeline, tmp_path):
    other = replace(pipeline.codec.config, latents_mean=(0.5,) * 16)
    for changes, words in (
        ({"size": (64, 64)}, "--size 64x64"),
        ({"sections": 3}, "asks for 3"),
        ({"codec": other}, "another autoencoder"),
        ({"text_dim": 8}, "columns"),
        ({"batch_size": 4}, "at most 3 examples"),
    ):
        with pytest.raises(DataError, match=words):
            open_clips(encoded, pipeline, **changes)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    settings = json.loads((encoded / "settings.json").read_text())
    (unfinished / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="not complete"):
        open_clips(unfinished, pipeline)
