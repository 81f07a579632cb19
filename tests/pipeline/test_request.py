"""Requests: what is refused, with which words, and how the gaps are filled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helios.diffusion import CFG, CFGZero, Flat, Pyramid, ScheduleConfig
from helios.errors import InputError
from helios.pipeline import GenerationConfig, Request

FLAT = GenerationConfig(height=64, width=96, num_frames=66, plan=Flat(steps=3), guidance=CFG(2.0))
PYRAMID = GenerationConfig(
    plan=Pyramid(steps=(4, 4, 4), solver="unipc", zero_init=2), guidance=CFGZero(5.0)
)
DISTILLED = GenerationConfig(
    plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True), guidance=None, distilled=True
)
SCHEDULE = ScheduleConfig(stages=1, dynamic=None, lag=False)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "empty"),
        ({"prompt": " \n\t "}, "empty"),
        ({"prompt": "x" * 4097}, "4,097"),
        ({"prompt": "a\x00b"}, r"U\+0000"),
        ({"prompt": "a\udc80b"}, r"U\+DC80"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": [(0, "a"), (2, "")]}, "empty"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(4, 8)}, "either"),
        ({"prompt": "a", "negative_prompt": "\x07"}, "negative prompt"),
    ],
)
def test_bad_texts_are_bad_input(fields: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Request(**fields)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": -3}, "num_frames"),
        ({"num_frames": 1.5}, "num_frames"),
        ({"num_frames": True}, "num_frames"),
        ({"num_frames": 10**12}, "num_frames"),
        ({"num_frames": 33, "seconds": 1.0}, "either num_frames or seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"fps": 0}, "fps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**63 - 1, "num_videos": 2}, "seed"),
        ({"num_videos": 0}, "num_videos"),
        ({"steps": 0}, "steps"),
        ({"steps": (2, 0, 2)}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"motion": 1.5}, "motion"),
        ({"image_noise": (0.2, 0.1)}, "image_noise"),
        ({"video_noise": 0.1}, "video_noise"),
        ({"motion": 0.5, "image_noise": (0.1, 0.2)}, "either motion or image_noise"),
        ({"image": "a.png", "video": "b.mp4"}, "either image or video"),
        ({"shift": "other"}, "shift"),
        ({"compat": "other"}, "compat"),
        ({"compat": "diffusers", "shift": "consistent"}, "shift"),
        ({"anti_drift": "yes"}, "anti_drift"),
        ({"transition_chunks": -1}, "transition_chunks"),
        ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        ({"generator": torch.Generator(), "num_videos": 2}, "num_videos"),
        ({"height": "64"}, "height"),
    ],
)
def test_bad_numbers_are_refused_by_name(fields: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        Request(prompt="a ball", **fields)
    assert not isinstance(caught.value, InputError)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'num_frames'"):
        Request.make(prompt="a", num_frame=3)


@pytest.mark.parametrize(
    ("height", "width", "near"),
    [(0, 96, "96x16"), (65, 96, "96x64"), (64, 100, "96x64"), (-16, 16, "16x16")],
)
def test_illegal_sizes_offer_the_nearest(height: int, width: int, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        FLAT.resolve(Request(prompt="a", height=height, width=width), SCHEDULE)


def test_three_scales_need_multiples_of_64() -> None:
    request = Request(prompt="a", height=80, width=128)
    with pytest.raises(ValueError, match="128x64"):
        PYRAMID.resolve(request, SCHEDULE)
    assert FLAT.resolve(request, SCHEDULE).height == 80


def test_gaps_are_filled_by_the_checkpoint() -> None:
    resolved = FLAT.resolve(Request(prompt="a"), SCHEDULE)
    assert (resolved.height, resolved.width, resolved.num_frames) == (64, 96, 66)
    assert resolved.plan == FLAT.plan
    assert resolved.guidance == CFG(2.0)
    assert FLAT.resolve(Request(prompt="a"), SCHEDULE, endless=True).num_frames is None


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [(1, None, 24), (5, 24, 120), (2.49, 10, 25), (0.02, 60, 1)]
)
def test_seconds_are_playback_rounded_to_frames(
    seconds: float, fps: int | None, frames: int
) -> None:
    request = Request(prompt="a", seconds=seconds, fps=fps)
    assert FLAT.resolve(request, SCHEDULE).num_frames == frames


def test_seconds_of_no_frame_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seconds=0\.001"):
        FLAT.resolve(Request(prompt="a", seconds=0.001), SCHEDULE)


@pytest.mark.parametrize(
    ("frames", "counts"),
    [(1, [1]), (33, [33]), (34, [33, 1]), (66, [33, 33]), (100, [33, 33, 33, 1])],
)
def test_chunks_add_up_to_the_frames(frames: int, counts: list[int]) -> None:
    resolved = FLAT.resolve(Request(prompt="a", num_frames=frames), SCHEDULE)
    assert resolved.chunks == len(counts)
    assert [resolved.frames_of(index) for index in range(len(counts))] == counts


def test_steps_must_fit_the_sampler() -> None:
    assert FLAT.resolve(Request(prompt="a", steps=9), SCHEDULE).plan.steps == 9
    assert PYRAMID.resolve(Request(prompt="a", steps=(1, 2, 3)), SCHEDULE).plan.steps == (1, 2, 3)
    with pytest.raises(ValueError, match="one number"):
        FLAT.resolve(Request(prompt="a", steps=(2, 2, 2)), SCHEDULE)
    with pytest.raises(ValueError, match="3 numbers"):
        PYRAMID.resolve(Request(prompt="a", steps=9), SCHEDULE)
    with pytest.raises(ValueError, match="3 numbers"):
        PYRAMID.resolve(Request(prompt="a", steps=(2, 2)), SCHEDULE)


def test_guidance_keeps_its_kind_and_goes_off_at_one() -> None:
    assert PYRAMID.resolve(Request(prompt="a", guidance_scale=3.0), SCHEDULE).guidance == CFGZero(3)
    assert PYRAMID.resolve(Request(prompt="a", guidance_scale=1), SCHEDULE).guidance is None
    assert FLAT.resolve(Request(prompt="a", guidance_scale=0), SCHEDULE).guidance is None


def test_a_distilled_checkpoint_takes_no_guidance() -> None:
    assert DISTILLED.resolve(Request(prompt="a"), SCHEDULE).guidance is None
    assert DISTILLED.resolve(Request(prompt="a", guidance_scale=1), SCHEDULE).guidance is None
    with pytest.raises(ValueError, match="guidance_scale=5"):
        DISTILLED.resolve(Request(prompt="a", guidance_scale=5), SCHEDULE)


def test_amplification_belongs_to_the_pyramid() -> None:
    resolved = DISTILLED.resolve(Request(prompt="a", amplify_first_chunk=False), SCHEDULE)
    assert resolved.plan == Pyramid(steps=(2, 2, 2), solver="renoise", amplify=False)
    with pytest.raises(ValueError, match="amplify_first_chunk"):
        FLAT.resolve(Request(prompt="a", amplify_first_chunk=True), SCHEDULE)


def test_shift_overrides_the_checkpoint() -> None:
    assert FLAT.resolve(Request(prompt="a", shift="published"), SCHEDULE).schedule.lag
    assert not FLAT.resolve(Request(prompt="a"), SCHEDULE).schedule.lag


def test_motion_scales_the_start_noise() -> None:
    still = FLAT.resolve(Request(prompt="a", motion=0.0), SCHEDULE)
    usual = FLAT.resolve(Request(prompt="a", motion=0.5), SCHEDULE)
    free = FLAT.resolve(Request(prompt="a", motion=1.0), SCHEDULE)
    assert still.image_noise == (0.0, 0.0)
    assert usual.image_noise == (0.111, 0.135)
    np.testing.assert_allclose(free.video_noise, (0.222, 0.27))
    assert (still.moves_anchor, usual.moves_anchor, free.moves_anchor) == (False, False, True)


@pytest.mark.parametrize("config", [FLAT, PYRAMID, DISTILLED])
def test_defaults_survive_json(config: GenerationConfig) -> None:
    import json

    assert GenerationConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "value",
    [
        {"heigth": 64},
        {"plan": 7},
        {"plan": {"steps": "x", "solver": "unipc"}},
        {"guidance": {"kind": "other", "scale": 2}},
        {"height": 65},
        {"num_frames": 0},
    ],
)
def test_malformed_defaults_are_refused(value: dict) -> None:
    with pytest.raises(ValueError):
        GenerationConfig.from_json(value)


def test_settings_are_json_in_the_names_of_the_request() -> None:
    import json

    request = Request(prompt=[(0, "a"), (2, "b")], num_frames=100)
    settings = json.loads(json.dumps(FLAT.resolve(request, SCHEDULE).settings()))
    assert settings["prompt"] == [[0, "a"], [2, "b"]]
    assert (settings["steps"], settings["guidance_scale"], settings["solver"]) == (3, 2.0, "unipc")
