import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from helios.conditioning import fit
from helios.data import (
    LATENTS,
    ClipConfig,
    ShardReader,
    read_clips,
    write_latents,
    write_scene_latents,
)
from helios.distributed import World
from helios.errors import DataError, InputError
from helios.media import VideoWriter, read_video

CPU = torch.device("cpu")
CONFIG = ClipConfig(height=32, width=48, sections=2, shard=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two long clips and a short one."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name, count in (("a", 70), ("b", 66), ("c", 40)):
        with VideoWriter(folder / f"{name}.mp4", 64, 48, 24, {}) as writer:
            writer.write(rng.integers(0, 255, (count, 48, 64, 3), dtype=np.uint8))
    lines = [
        {"video": "a.mp4", "caption": "a red  ball", "start": 3},
        {"video": "b.mp4", "caption": "a green cube"},
        {"video": "c.mp4", "caption": "a blue cone"},
        {"video": "a.mp4", "caption": "a red cone"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "clips.jsonl").write_text(text + "\n\n")
    return folder


def write(pipeline, clips, out, config=CONFIG):
    lines = []
    found = read_clips(clips / "clips.jsonl")
    world = World(device=CPU)
    write_latents(pipeline.codec, pipeline.text_encoder, found, config, out, world, lines.append)
    return lines


def test_sections_are_encoded_one_by_one_with_their_captions(tmp_path, pipeline, clips):
    lines = write(pipeline, clips, tmp_path / "a")
    assert [line for line in lines if "left out" in line] == [
        f"{clips / 'c.mp4'} is left out: it has fewer than 66 frames"
    ]
    reader = ShardReader(tmp_path / "a", LATENTS, batch=3, device=CPU)
    reader.prepare()
    batch = reader.batch()
    assert batch["latents"].shape == (3, 16, 18, 4, 6)
    text = pipeline.text_encoder.encode(["a red ball"]).half()
    row = int((batch["text"] == text).flatten(1).all(dim=1).nonzero())
    frames, _ = read_video(clips / "a.mp4", 69, cover=(32, 48))
    wanted = pipeline.codec.encode(fit(frames[36:69], 32, 48))
    torch.testing.assert_close(
        batch["latents"][row, :, 9:].float(), wanted[0], atol=4e-3, rtol=4e-3
    )


def test_nothing_long_enough_is_an_error_and_leaves_no_shard(tmp_path, pipeline, clips):
    with pytest.raises(DataError, match="99 frames"):
        write(pipeline, clips, tmp_path / "a", ClipConfig(height=32, width=48, sections=3))
    assert not list((tmp_path / "a").glob("0*"))


@pytest.mark.parametrize(
    "line",
    ["nonsense", "{}", '{"video": "a.mp4"}', "[1]", '{"video": "a", "caption": "b", "start": -1}'],
)
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / "clips.jsonl"
    path.write_text('{"video": "a.mp4", "caption": "a"}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        read_clips(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="no clips"):
        read_clips(path)


def test_scenes_are_encoded_as_clips_are(tmp_path, pipeline):
    parts = (pipeline.codec, pipeline.text_encoder)
    world = World(device=CPU)
    for name, shard in (("a", 2), ("b", 3)):
        config = replace(CONFIG, sections=1, shard=shard)
        write_scene_latents(*parts, 3, config, tmp_path / name, world, lambda _: None, seed=4)
    batches = []
    for name in ("a", "b"):
        reader = ShardReader(tmp_path / name, LATENTS, batch=3, device=CPU)
        reader.prepare()
        batch = reader.batch()
        assert batch["latents"].shape == (3, 16, 9, 4, 6)
        assert batch["text"].shape[0] == 3
        order = batch["latents"][:, 0, 0, 0, 0].argsort()
        batches.append([batch[key][order].float() for key in ("latents", "text")])
    for one, other in zip(*batches, strict=True):
        torch.testing.assert_close(one, other, atol=4e-3, rtol=4e-3)
