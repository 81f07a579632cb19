"""Continuing clips: the same as starting from a video, with or without the clip before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helios.errors import InputError
from helios.media import read_settings, read_video
from helios.pipeline import Pipeline, Video

PROMPT, NEXT = "a red ball rolls on grass", "a blue cube spins on snow"
FIELDS = {"num_frames": 34, "seed": 3, "steps": 1}


def clip(frames: int = 40, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(6).integers(0, 256, (frames, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def made(pipeline: Pipeline) -> Video:
    video = pipeline([(0, NEXT), (1, PROMPT)], num_frames=40, seed=1, steps=1)
    assert isinstance(video, Video)
    return video


def test_extending_is_starting_from_the_video(
    pipeline: Pipeline, made: Video, tmp_path: Path
) -> None:
    made.save(tmp_path / "clip.mp4")
    for source, started in (
        (tmp_path / "clip.mp4", tmp_path / "clip.mp4"),
        (str(tmp_path / "clip.mp4"), tmp_path / "clip.mp4"),
        (made, made.frames),
        (clip(), clip()),
    ):
        extended = pipeline.extend(source, NEXT, **FIELDS)
        plain = pipeline(NEXT, video=started, **FIELDS)
        assert np.array_equal(extended.frames, plain.frames)
        assert extended.settings == plain.settings | {"clip_frames": 0}


def test_the_command_line_gives_the_same(tiny_random: Path, made: Video, tmp_path: Path) -> None:
    """Compared after the same video coding, so the frames agree to the last bit."""
    from typer.testing import CliRunner

    from helios.cli.main import app
    from helios.pipeline import load

    made.save(tmp_path / "clip.mp4")
    command = [
        *("generate", NEXT, "--video", str(tmp_path / "clip.mp4"), "--model", str(tiny_random)),
        *("--num-frames", "34", "--seed", "3", "--steps", "1", "--dtype", "float32"),
        *("--device", "cpu", "-o", str(tmp_path / "out.mp4")),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    pipe = load(tiny_random, device="cpu", dtype="float32")
    pipe.extend(tmp_path / "clip.mp4", NEXT, **FIELDS).save(tmp_path / "own.mp4")
    frames = [read_video(tmp_path / name)[0] for name in ("out.mp4", "own.mp4")]
    assert np.array_equal(*frames)
    assert read_settings(tmp_path / "own.mp4")["video"] == "clip.mp4"


def test_the_clip_can_come_along(pipeline: Pipeline, made: Video) -> None:
    alone = pipeline.extend(made, NEXT, **FIELDS)
    joined = pipeline.extend(made, NEXT, include_clip=True, **FIELDS)
    assert np.array_equal(joined.frames, np.concatenate([made.frames, alone.frames]))
    assert np.array_equal(joined.latents, alone.latents)
    assert joined.settings["clip_frames"] == 40


def test_a_larger_clip_comes_in_the_size_of_the_result(pipeline: Pipeline) -> None:
    flat = np.full((33, 64, 96, 3), (10, 128, 255), np.uint8)
    joined = pipeline.extend(flat, NEXT, include_clip=True, **FIELDS)
    assert joined.frames.shape == (67, 32, 48, 3)
    assert np.abs(joined.frames[:33].astype(int) - flat[:, :32, :48]).max() <= 1


def test_the_clip_keeps_its_rate(pipeline: Pipeline, made: Video, tmp_path: Path) -> None:
    from dataclasses import replace

    slow = replace(made, fps=12)
    slow.save(tmp_path / "slow.mp4")
    for source in (slow, tmp_path / "slow.mp4"):
        assert pipeline.extend(source, NEXT, include_clip=True, **FIELDS).fps == 12
    assert pipeline.extend(slow, NEXT, **FIELDS).fps == 24
    assert pipeline.extend(slow, NEXT, include_clip=True, fps=30, **FIELDS).fps == 30


def test_without_a_prompt_the_last_one_holds(
    pipeline: Pipeline, made: Video, tmp_path: Path
) -> None:
    made.save(tmp_path / "clip.mp4")
    for source in (made, tmp_path / "clip.mp4"):
        assert pipeline.extend(source, **FIELDS).settings["prompt"] == PROMPT
    with pytest.raises(InputError, match="give a prompt"):
        pipeline.extend(clip(), **FIELDS)
    assert pipeline.text_encoder is not None
    embeds = pipeline.text_encoder.encode([NEXT])
    by_embeds = pipeline.extend(clip(), prompt_embeds=embeds, **FIELDS)
    assert np.array_equal(by_embeds.frames, pipeline.extend(clip(), NEXT, **FIELDS).frames)


def test_several_continuations(pipeline: Pipeline, made: Video) -> None:
    videos = pipeline.extend(made, NEXT, include_clip=True, num_videos=2, **FIELDS)
    assert isinstance(videos, list)
    assert [video.settings["seed"] for video in videos] == [3, 4]
    assert all(np.array_equal(video.frames[:40], made.frames) for video in videos)


def test_a_second_start_is_refused(pipeline: Pipeline) -> None:
    for name in ("video", "image"):
        with pytest.raises(ValueError, match=f"{name} is not possible here"):
            pipeline.extend(clip(), NEXT, **{name: clip()})
    with pytest.raises(InputError, match="does not exist"):
        pipeline.extend("/no/such.mp4", NEXT)
