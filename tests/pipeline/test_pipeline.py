"""The loop: counts, seeds, independence, streaming, start images and videos."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import helios
from helios.diffusion import Flat
from helios.errors import InputError
from helios.geometry import chunk_count
from helios.pipeline import Pipeline, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPT = "a red ball rolls on grass"


def picture(height: int = 48, width: int = 80, seed: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def clip(frames: int = 40, seed: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, 32, 48, 3), np.uint8)


@pytest.mark.parametrize("frames", [1, 33, 34, 66, 100])
def test_exactly_the_frames_asked_for(pipeline: Pipeline, frames: int) -> None:
    video = pipeline(PROMPT, num_frames=frames, seed=1, steps=1, guidance_scale=1)
    assert video.frames.shape == (frames, 32, 48, 3)
    assert video.frames.dtype == np.uint8
    assert video.latents.shape == (16, 9 * chunk_count(frames), 4, 6)
    assert video.latents.dtype == torch.float32
    assert video.fps == 24


def test_default_length_comes_from_the_checkpoint(pipeline: Pipeline) -> None:
    assert len(pipeline(PROMPT, seed=1, steps=1).frames) == 33


def test_same_seed_same_frames_whatever_came_before(pipeline: Pipeline) -> None:
    first = pipeline(PROMPT, num_frames=40, seed=11)
    pipeline("a blue cube spins on snow", num_frames=33, seed=4, steps=2, image=picture())
    again = pipeline(PROMPT, num_frames=40, seed=11)
    other = pipeline(PROMPT, num_frames=40, seed=12)
    assert np.array_equal(first.frames, again.frames)
    assert torch.equal(first.latents, again.latents)
    assert not np.array_equal(first.frames, other.frames)


def test_the_global_random_state_is_neither_read_nor_moved(pipeline: Pipeline) -> None:
    torch.manual_seed(1)
    first = pipeline(PROMPT, num_frames=33, seed=11, image=picture())
    before = torch.random.get_rng_state()
    torch.manual_seed(2)
    torch.rand(7)
    second = pipeline(PROMPT, num_frames=33, seed=11, image=picture())
    assert torch.equal(first.latents, second.latents)
    torch.random.set_rng_state(before)
    pipeline(PROMPT, num_frames=33, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_missing_seed_is_chosen_and_recorded(pipeline: Pipeline) -> None:
    one, two = (pipeline(PROMPT, num_frames=33, steps=1) for _ in range(2))
    assert one.settings["seed"] != two.settings["seed"]
    again = pipeline(PROMPT, num_frames=33, steps=1, seed=one.settings["seed"])
    assert np.array_equal(again.frames, one.frames)


def test_a_generator_is_used_as_it_stands(pipeline: Pipeline) -> None:
    generator = torch.Generator().manual_seed(11)
    by_generator = pipeline(PROMPT, num_frames=33, generator=generator)
    by_seed = pipeline(PROMPT, num_frames=33, seed=11)
    next_one = pipeline(PROMPT, num_frames=33, generator=generator)
    assert torch.equal(by_generator.latents, by_seed.latents)
    assert not torch.equal(next_one.latents, by_seed.latents)


def test_streaming_equals_the_whole_call(pipeline: Pipeline) -> None:
    whole = pipeline(PROMPT, num_frames=70, seed=3)
    chunks = list(pipeline.stream(Request(prompt=PROMPT, num_frames=70, seed=3)))
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert [len(chunk.frames) for chunk in chunks] == [33, 33, 4]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), whole.frames)
    assert torch.equal(torch.cat([chunk.latents for chunk in chunks], dim=1), whole.latents)
    assert all(chunk.prompt == PROMPT for chunk in chunks)
    assert all(0 < chunk.timings["decode"] < chunk.timings["total"] for chunk in chunks)


def test_an_endless_stream_begins_like_a_finite_one(pipeline: Pipeline) -> None:
    finite = pipeline(PROMPT, num_frames=99, seed=3, steps=1)
    stream = pipeline.stream(Request(prompt=PROMPT, num_frames=None, seed=3, steps=1))
    endless = [next(stream) for _ in range(5)]
    assert np.array_equal(np.concatenate([c.frames for c in endless[:3]]), finite.frames)


def test_two_streams_side_by_side_do_not_touch(pipeline: Pipeline) -> None:
    one = Request(prompt=PROMPT, num_frames=66, seed=3, steps=2)
    two = replace(one, prompt="a blue cube", seed=4)
    alone = [np.concatenate([c.frames for c in pipeline.stream(r)]) for r in (one, two)]
    mixed = list(zip(pipeline.stream(one), pipeline.stream(two), strict=True))
    for index in range(2):
        together = np.concatenate([pair[index].frames for pair in mixed])
        assert np.array_equal(together, alone[index])


def test_a_consumer_may_compute_gradients_between_chunks(pipeline: Pipeline) -> None:
    stream = pipeline.stream(Request(prompt=PROMPT, num_frames=66, seed=3, steps=1))
    chunk = next(stream)
    assert torch.is_grad_enabled()
    weight = torch.ones((), requires_grad=True)
    (chunk.latents * weight).sum().backward()
    assert weight.grad is not None


def test_num_videos_are_what_each_seed_alone_gives(pipeline: Pipeline) -> None:
    videos = pipeline(PROMPT, num_frames=33, seed=5, num_videos=2, steps=2)
    assert [video.settings["seed"] for video in videos] == [5, 6]
    for video in videos:
        alone = pipeline(PROMPT, num_frames=33, seed=video.settings["seed"], steps=2)
        assert np.array_equal(alone.frames, video.frames)
    with pytest.raises(ValueError, match="num_videos"):
        pipeline.stream(Request(prompt=PROMPT, num_videos=2))


def test_a_prompt_track_changes_from_its_chunk_on(pipeline: Pipeline) -> None:
    track = [(0, PROMPT), (2, "a blue cube spins on snow")]
    changed = pipeline(track, num_frames=99, seed=3, steps=2)
    plain = pipeline(PROMPT, num_frames=99, seed=3, steps=2)
    assert np.array_equal(changed.frames[:66], plain.frames[:66])
    assert not np.array_equal(changed.frames[66:], plain.frames[66:])
    prompts = [c.prompt for c in pipeline.stream(Request(prompt=track, num_frames=99, steps=1))]
    assert prompts == [PROMPT, PROMPT, track[1][1]]


def test_guidance_and_negative_prompt_matter(pipeline: Pipeline) -> None:
    def latents(**fields: object) -> torch.Tensor:
        return pipeline(PROMPT, num_frames=33, seed=3, **fields).latents

    off = latents(guidance_scale=1)
    assert torch.equal(off, latents(guidance_scale=0.5, negative_prompt="a blue cube"))
    assert not torch.equal(off, latents(guidance_scale=3))
    assert not torch.equal(
        latents(guidance_scale=3), latents(guidance_scale=3, negative_prompt="a blue cube")
    )


def test_the_callback_sees_each_chunk_before_it_is_yielded(pipeline: Pipeline) -> None:
    seen: list[int] = []
    request = Request(
        prompt=PROMPT,
        num_frames=66,
        seed=3,
        steps=1,
        callback=lambda chunk: seen.append(chunk.index),
    )
    for chunk in pipeline.stream(request):
        assert seen[-1] == chunk.index
    assert seen == [0, 1]


def test_embeddings_stand_for_their_text(pipeline: Pipeline) -> None:
    assert pipeline.text_encoder is not None
    embeds = pipeline.text_encoder.encode([PROMPT])
    negative = pipeline.text_encoder.encode(["a cone"])
    by_text = pipeline(PROMPT, negative_prompt="a cone", num_frames=33, seed=3)
    by_embeds = pipeline(
        prompt_embeds=embeds[0], negative_prompt_embeds=negative, num_frames=33, seed=3
    )
    assert torch.equal(by_text.latents, by_embeds.latents)
    with pytest.raises(ValueError, match="prompt_embeds has 8 columns"):
        pipeline(prompt_embeds=torch.zeros(4, 8), num_frames=33)


def test_without_a_text_encoder_embeddings_are_required(pipeline: Pipeline) -> None:
    bare = copy.copy(pipeline)
    bare.text_encoder = None
    embeds = torch.zeros(16, 24)
    with pytest.raises(ValueError, match="no text encoder"):
        bare(PROMPT, num_frames=33)
    with pytest.raises(ValueError, match="negative_prompt_embeds"):
        bare(prompt_embeds=embeds, num_frames=33)
    assert len(bare(prompt_embeds=embeds, guidance_scale=1, num_frames=33, steps=1).frames) == 33


@pytest.mark.parametrize("noise", [None, (0.0, 0.0)])
def test_an_image_starts_the_video(pipeline: Pipeline, noise: tuple[float, float] | None) -> None:
    fields = {"num_frames": 34, "seed": 3, "image_noise": noise, "video_noise": noise}
    video = pipeline(PROMPT, image=picture(), **fields)
    other = pipeline(PROMPT, image=picture(seed=9), **fields)
    assert video.frames.shape == (34, 32, 48, 3)
    assert not np.array_equal(video.frames, other.frames)
    assert not np.array_equal(video.frames, pipeline(PROMPT, num_frames=34, seed=3).frames)


def test_a_video_is_continued_not_repeated(pipeline: Pipeline) -> None:
    video = pipeline(PROMPT, video=clip(), num_frames=34, seed=3)
    other = pipeline(PROMPT, video=clip(seed=8), num_frames=34, seed=3)
    assert video.frames.shape == (34, 32, 48, 3)
    assert video.latents.shape[1] == 18
    assert not np.array_equal(video.frames, other.frames)


def test_images_and_videos_from_files(pipeline: Pipeline, tmp_path: object) -> None:
    from pathlib import Path

    from PIL import Image

    folder = Path(str(tmp_path))
    Image.fromarray(picture()).save(folder / "start.png")
    pipeline("a ball", num_frames=34, seed=1, steps=1).save(folder / "clip.mp4")
    by_path = pipeline(PROMPT, image=folder / "start.png", num_frames=33, seed=3)
    by_array = pipeline(PROMPT, image=picture(), num_frames=33, seed=3)
    by_picture = pipeline(PROMPT, image=Image.fromarray(picture()), num_frames=33, seed=3)
    assert np.array_equal(by_path.frames, by_array.frames)
    assert np.array_equal(by_picture.frames, by_array.frames)
    assert by_path.settings["image"] == "start.png"
    continued = pipeline(PROMPT, video=str(folder / "clip.mp4"), num_frames=33, seed=3, steps=1)
    assert continued.frames.shape == (33, 32, 48, 3)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"image": np.zeros((8, 8), np.uint8)}, "image must be"),
        ({"image": np.zeros((8, 8, 3), np.float32)}, "image must be"),
        ({"image": "/no/such/file.png"}, "does not exist"),
        ({"video": np.zeros((40, 8, 8), np.uint8)}, "video must be"),
        ({"video": np.zeros((0, 32, 48, 3), np.uint8)}, "video must be"),
        ({"video": "/no/such/file.mp4"}, "does not exist"),
    ],
)
def test_unusable_starts_are_refused_before_any_work(
    pipeline: Pipeline, fields: dict, word: str
) -> None:
    with pytest.raises(InputError, match=word):
        pipeline.stream(Request(prompt=PROMPT, num_frames=33, **fields))


def test_a_length_that_cannot_fit_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"num_frames=10000000 needs .* GiB"):
        pipeline(PROMPT, num_frames=10_000_000)


def test_another_size_warns_and_works(pipeline: Pipeline) -> None:
    with pytest.warns(UserWarning, match="trained at 48x32"):
        video = pipeline(PROMPT, height=48, width=80, num_frames=33, steps=1, seed=1)
    assert video.frames.shape == (33, 48, 80, 3)


def test_words_that_cannot_be_read_are_named(pipeline: Pipeline) -> None:
    fields = {"num_frames": 1, "steps": 1, "seed": 1}
    with pytest.warns(UserWarning, match="does not know the words: purple, elephant"):
        pipeline("a purple elephant rolls on a purple elephant", **fields)
    with pytest.warns(UserWarning, match=r"has 21 tokens; this model reads the first 16"):
        pipeline("red " * 20, **fields)


def test_values_that_are_not_finite_never_become_frames(pipeline: Pipeline) -> None:
    broken = copy.copy(pipeline)
    broken.transformer = copy.deepcopy(pipeline.transformer)
    with torch.no_grad():
        next(broken.transformer.head.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="chunk 0"):
        broken(PROMPT, num_frames=33)


def test_saved_settings_make_the_same_video(pipeline: Pipeline, tmp_path: object) -> None:
    from pathlib import Path

    from helios.media import read_settings, read_video

    target = Path(str(tmp_path)) / "out.mp4"
    video = pipeline(PROMPT, num_frames=40, seed=11, steps=2)
    assert video.save(target) == target
    settings = read_settings(target)
    assert settings == video.settings
    assert settings["helios"] == helios.__version__
    frames, rate = read_video(target)
    assert (frames.shape, rate) == ((40, 32, 48, 3), 24)
    names = ("prompt", "negative_prompt", "num_frames", "steps", "guidance_scale", "seed", "fps")
    again = pipeline(**{name: settings[name] for name in names})
    assert np.array_equal(again.frames, video.frames)
    assert list(target.parent.iterdir()) == [target]


def test_memory_of_delivered_chunks_is_given_back(pipeline: Pipeline) -> None:
    import weakref

    request = Request(prompt=PROMPT, seed=3, steps=1, guidance_scale=1)
    alive = []
    for chunk in pipeline.stream(request):
        alive = [ref for ref in alive if ref() is not None]
        assert len(alive) <= 1
        alive.append(weakref.ref(chunk.frames))
        if chunk.index == 5:
            break
        del chunk


def test_flat_solvers_differ(pipeline: Pipeline) -> None:
    euler = copy.copy(pipeline)
    euler.defaults = replace(pipeline.defaults, plan=Flat(steps=3, solver="euler"))
    one, two = (p(PROMPT, num_frames=33, seed=3).latents for p in (pipeline, euler))
    assert not torch.equal(one, two)
    assert torch.isfinite(two).all()
