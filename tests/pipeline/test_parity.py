"""The whole pipeline against diffusers' on one random checkpoint: same seed, same latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeliosPipeline, HeliosPyramidPipeline
from PIL import Image

import helios
from helios.diffusion import CFGZero, Flat, Pyramid
from helios.pipeline import GenerationConfig, Pipeline

PROMPT = "a red ball rolls on grass"
HEIGHT, WIDTH = 64, 96
RNG = np.random.default_rng(7)
IMAGE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
CLIP = RNG.integers(0, 256, (70, HEIGHT, WIDTH, 3), np.uint8)


def theirs(folder: Path, kind: Any, **fields: Any) -> torch.Tensor:
    pipe = kind.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    fields = {"negative_prompt": "a cone", "width": WIDTH} | fields
    latents = pipe(
        prompt=PROMPT,
        height=HEIGHT,
        num_frames=66,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **fields,
    ).frames
    return latents[0, :, -18:]


def ours(pipe: Pipeline, **fields: Any) -> torch.Tensor:
    video = pipe(PROMPT, negative_prompt="a cone", num_frames=66, seed=3, height=HEIGHT, **fields)
    assert isinstance(video, helios.Video)
    return video.latents


STARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({}, {}),
    "image": ({"image": IMAGE}, {"image": Image.fromarray(IMAGE)}),
    "video": ({"video": CLIP}, {"video": [Image.fromarray(frame) for frame in CLIP]}),
}


@pytest.fixture(scope="module", params=["unipc", "euler"])
def flat(
    request: pytest.FixtureRequest, tmp_path_factory: Any, make_pipeline: Callable[..., Pipeline]
) -> tuple[Pipeline, Path]:
    pipe = make_pipeline()
    pipe.defaults = replace(
        pipe.defaults, height=HEIGHT, width=WIDTH, plan=Flat(steps=3, solver=request.param)
    )
    return pipe, pipe.save(tmp_path_factory.mktemp("flat") / "model")


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("start", STARTS)
def test_flat_latents_equal_diffusers(
    flat: tuple[Pipeline, Path], start: str, scale: float
) -> None:
    pipe, folder = flat
    own, other = STARTS[start]
    expected = theirs(folder, HeliosPipeline, num_inference_steps=3, guidance_scale=scale, **other)
    found = ours(pipe, guidance_scale=scale, width=WIDTH, **own)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


PYRAMIDS: dict[str, tuple[GenerationConfig, dict[str, Any]]] = {
    "few-step": (
        GenerationConfig(
            height=HEIGHT,
            width=128,
            plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
            guidance=None,
            distilled=True,
        ),
        {"is_amplify_first_chunk": True, "guidance_scale": 1.0},
    ),
    "guided": (
        GenerationConfig(
            height=HEIGHT,
            width=128,
            plan=Pyramid(steps=(3, 2, 2), solver="unipc", zero_init=2),
            guidance=CFGZero(2.5),
        ),
        {"guidance_scale": 2.5},
    ),
}


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_pyramid_latents_equal_diffusers(
    tmp_path: Path, make_pipeline: Callable[..., Pipeline], kind: str
) -> None:
    defaults, fields = PYRAMIDS[kind]
    pipe = make_pipeline(defaults, stages=3)
    folder = pipe.save(tmp_path / "model")
    steps = list(defaults.plan.steps)  # type: ignore[arg-type]
    expected = theirs(
        folder, HeliosPyramidPipeline, pyramid_num_inference_steps_list=steps, width=128, **fields
    )
    loaded = helios.load(folder, dtype="float32")
    assert loaded.defaults == defaults
    found = ours(loaded)
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_folders_written_by_diffusers_load(tiny_random: Path, tmp_path: Path) -> None:
    pipe = HeliosPipeline.from_pretrained(tiny_random, dtype=torch.float32)
    pipe.save_pretrained(tmp_path / "theirs")
    loaded = helios.load(tmp_path / "theirs", dtype="float32")
    assert loaded.defaults == GenerationConfig()  # theirs has no file of ours
    assert loaded.schedule.lag
    fields = {"num_frames": 33, "seed": 3, "steps": 2, "guidance_scale": 2.0}
    own = helios.load(tiny_random, dtype="float32")
    expected = own(PROMPT, **fields)
    fields |= {"height": own.defaults.height, "width": own.defaults.width}
    with pytest.warns(UserWarning, match="trained at 640x384"):
        found = loaded(PROMPT, **fields)
    assert torch.equal(found.latents, expected.latents)
