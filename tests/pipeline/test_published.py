"""Checkpoints that diffusers wrote: their defaults, and the bugs of the public code they escape.

The numbers B1 to B15 are those of the specification "model and sampling", section 9.2.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeliosTransformer3DModel

import helios
from helios.diffusion import CFG, CFGZero, Flat, Pyramid, pyramid
from helios.geometry import CHUNK_LATENTS
from helios.history import HistoryWindow
from helios.model import fp32_names, load_transformer
from helios.pipeline import Engine, GenerationConfig, Pipeline, Request

from .published import lent_factor, published_pipeline, random_parts, write_checkpoint

PROMPT = "a red ball rolls on grass"
QUICK = {"num_frames": 33, "seed": 3, "height": 64, "width": 128}


@pytest.fixture(autouse=True)
def any_size() -> Iterator[None]:
    """Small sizes make these tests quick; the advice against them is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this checkpoint was trained")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three published kinds, sharing their random weights."""
    root, parts = tmp_path_factory.mktemp("published"), random_parts(patched=True)
    return {kind: write_checkpoint(kind, root / kind, parts) for kind in KINDS}


KINDS = ("base", "mid", "distilled")


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, Pipeline]:
    return {kind: helios.load(folder, "cpu", "float32") for kind, folder in folders.items()}


def calls(module: torch.nn.Module, run: Any) -> int:
    """How often ``module`` is asked while ``run()`` runs."""
    asked: list[int] = []
    handle = module.register_forward_hook(lambda *_: asked.append(1))
    try:
        run()
    finally:
        handle.remove()
    return len(asked)


def test_defaults_are_the_published_ones(pipes: dict[str, Pipeline]) -> None:
    assert pipes["base"].defaults == GenerationConfig(plan=Flat(steps=50), guidance=CFG(5.0))
    assert pipes["mid"].defaults == GenerationConfig(
        plan=Pyramid(steps=(20, 20, 20), zero_init=2), guidance=CFGZero(5.0)
    )
    assert pipes["distilled"].defaults == GenerationConfig(
        plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
        guidance=None,
        distilled=True,
    )
    for pipe in pipes.values():
        assert pipe.schedule.lag
        assert (pipe.defaults.height, pipe.defaults.width) == (384, 640)
    assert pipes["mid"].schedule.dynamic.kind == "exponential"
    assert pipes["distilled"].schedule.dynamic.kind == "linear"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_again_it_is_the_same_checkpoint(
    pipes: dict[str, Pipeline], kind: str, tmp_path: Path
) -> None:
    again = helios.load(pipes[kind].save(tmp_path / "again"), "cpu", "float32")
    assert (again.defaults, again.schedule) == (pipes[kind].defaults, pipes[kind].schedule)
    steps = 2 if kind == "base" else (1, 1, 1)
    one, two = (p(PROMPT, steps=steps, **QUICK).latents for p in (pipes[kind], again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("amplify", [False, True])
def test_b1_distilled_never_guides(
    pipes: dict[str, Pipeline], folders: dict[str, Path], amplify: bool
) -> None:
    pipe = pipes["distilled"]
    fields = {**QUICK, "steps": (1, 2, 1), "amplify_first_chunk": amplify}
    assert calls(pipe.transformer, lambda: pipe(PROMPT, **fields)) == (8 if amplify else 4)
    with pytest.raises(ValueError, match="guidance_scale=5"):
        pipe(PROMPT, guidance_scale=5.0, **fields)


def test_b1_diffusers_guides_it_all_the_same(folders: dict[str, Path]) -> None:
    theirs = published_pipeline(folders["distilled"])
    with lent_factor():
        count = calls(
            theirs.transformer,
            lambda: theirs(
                PROMPT,
                height=64,
                width=64,
                num_frames=33,
                pyramid_num_inference_steps_list=[1, 1, 1],
                max_sequence_length=16,
                output_type="latent",
            ),
        )
    assert count == 6


def test_b2_block_noise_comes_from_the_seed(
    pipes: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    own = pyramid.block_noise

    def record(*args: Any) -> torch.Tensor:
        drawn.append(own(*args))
        return drawn[-1]

    monkeypatch.setattr(pyramid, "block_noise", record)
    fields = {**QUICK, "num_frames": 66, "steps": (1, 1, 1), "amplify_first_chunk": False}
    for seed in (3, 4, 3):
        pipes["distilled"](PROMPT, **{**fields, "seed": seed})
    assert len(drawn) == 12
    for one, two in itertools.combinations(drawn[:8], 2):
        assert one.shape != two.shape or not torch.equal(one, two)
    assert all(torch.equal(one, two) for one, two in zip(drawn[:4], drawn[8:], strict=True))


@pytest.mark.parametrize("frames", [66, 99, 100])
def test_b3_no_frame_is_lost(pipes: dict[str, Pipeline], frames: int) -> None:
    video = pipes["base"](PROMPT, num_frames=frames, height=16, width=16, steps=1, seed=1)
    assert len(video.frames) == frames


def test_b3_diffusers_loses_one_of_66(folders: dict[str, Path]) -> None:
    theirs = published_pipeline(folders["base"])
    fields = {"num_frames": 66, "height": 16, "width": 16, "num_inference_steps": 1}
    frames = theirs(PROMPT, max_sequence_length=16, guidance_scale=1.0, **fields).frames[0]
    assert len(frames) == 65


def test_b4_b5_prompts_do_not_change_the_length_and_the_last_one_stays(
    pipes: dict[str, Pipeline],
) -> None:
    request = Request(
        prompt=[(0, PROMPT), (1, "a blue cube"), (2, "a cone")],
        num_frames=33 * 5,
        height=16,
        width=16,
        steps=1,
        seed=1,
        guidance_scale=1.0,
    )
    shown = [chunk.prompt for chunk in pipes["base"].stream(request)]
    assert shown == [PROMPT, "a blue cube", "a cone", "a cone", "a cone"]


def test_b6_the_anchor_may_move(pipes: dict[str, Pipeline]) -> None:
    seen: list[torch.Tensor] = []
    pipe = pipes["base"]
    handle = pipe.transformer.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[3].frames[:, :, :1].clone())
    )
    fields = {"num_frames": 99, "height": 16, "width": 32, "steps": 1, "guidance_scale": 1.0}
    latents = {}
    try:
        for motion in (0.5, 1.0):
            latents[motion] = pipe(PROMPT, motion=motion, seed=1, **fields).latents[None]
    finally:
        handle.remove()
    start, second = (latents[1.0][:, :, 9 * chunk : 9 * chunk + 1] for chunk in (0, 1))
    assert not seen[0].any()
    assert torch.equal(seen[1], start)
    assert torch.equal(seen[2], start)  # motion 0.5 keeps the first frame
    assert torch.equal(seen[4], start)
    assert torch.equal(seen[5], second)


def test_b7_amplified_history_runs_in_bfloat16(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1}
    sizes |= {"ffn_dim": 16, "text_dim": 8, "freq_dim": 16, "rope_dim": (4, 4, 4)}
    torch.manual_seed(0)
    HeliosTransformer3DModel(**sizes, is_amplify_history=True).save_pretrained(tmp_path)
    window = HistoryWindow(torch.randn(1, 16, 20, 8, 8), torch.ones(1, 20, dtype=torch.bool))
    inputs = (torch.randn(1, 16, 9, 8, 8), torch.tensor([500]), torch.randn(1, 3, 8), window)
    found = {
        dtype: load_transformer(tmp_path, dtype=dtype)(*inputs).float()
        for dtype in (torch.float32, torch.bfloat16)
    }
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("field", ["latents", "sigmas", "image_latents", "num_videos_per_prompt"])
def test_b8_b10_nothing_is_accepted_and_ignored(pipes: dict[str, Pipeline], field: str) -> None:
    with pytest.raises(ValueError, match=f"unknown field '{field}'"):
        pipes["mid"](PROMPT, **{field: torch.zeros(1)})


def test_b9_several_videos_are_several_videos(pipes: dict[str, Pipeline]) -> None:
    embeds = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    fields = {"num_frames": 33, "height": 16, "width": 16, "steps": 1, "guidance_scale": 1.0}
    for source in ({"prompt": PROMPT}, {"prompt_embeds": embeds}):
        videos = pipes["base"](**source, num_videos=3, seed=5, **fields)
        singly = [pipes["base"](**source, seed=seed, **fields) for seed in (5, 6, 7)]
        for one, two in zip(videos, singly, strict=True):
            assert torch.equal(one.latents, two.latents)
            assert np.array_equal(one.frames, two.frames)
        assert not torch.equal(videos[0].latents, videos[1].latents)


@pytest.mark.parametrize("kind", ["mid", "distilled"])
def test_b11_sizes_that_three_scales_cannot_halve_are_refused(
    pipes: dict[str, Pipeline], kind: str
) -> None:
    def refused() -> None:
        with pytest.raises(ValueError, match="128x64"):
            pipes[kind](PROMPT, height=80, width=96)

    assert calls(pipes[kind].transformer, refused) == 0


@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
def test_b12_cfg_zero_takes_a_single_column_of_patches(
    pipes: dict[str, Pipeline], size: tuple[int, int]
) -> None:
    height, width = size
    fields = {"num_frames": 33, "seed": 3, "height": height, "width": width}
    latents = pipes["mid"](PROMPT, steps=(3, 1, 1), **fields).latents
    assert torch.isfinite(latents).all()


def test_b13_failures_are_heard(pipes: dict[str, Pipeline]) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="space"):
        pipes["base"](PROMPT, num_frames=66, height=16, width=16, steps=1, callback=fail)


def test_b14_noise_against_drift_never_reaches_the_output(pipes: dict[str, Pipeline]) -> None:
    fields = {"num_frames": 132, "height": 16, "width": 32, "steps": 2, "seed": 3}
    touchy = {"mean_threshold": 1e-9, "variance_threshold": 1e-9}
    plain, kept = (
        list(pipes["base"].stream(Request(prompt=PROMPT, anti_drift=anti_drift, **fields)))
        for anti_drift in (False, touchy)
    )
    for index in (0, 1):  # chunk 1 drifts: it is shown as it is, only its memory is noisy
        assert torch.equal(plain[index].latents, kept[index].latents)
        assert np.array_equal(plain[index].frames, kept[index].frames)
    assert not torch.equal(plain[2].latents, kept[2].latents)
    assert any(name.startswith("drift") for name in kept[1].timings)
    assert not any(name.startswith("drift") for name in plain[1].timings)


def test_b15_bfloat16_keeps_what_must_stay_float32(folders: dict[str, Path]) -> None:
    theirs = HeliosTransformer3DModel.from_pretrained(
        folders["base"] / "transformer", dtype=torch.bfloat16
    )
    ours = helios.load(folders["base"], "cpu", "bfloat16").transformer
    kept = fp32_names(ours)
    wide = [name for name, p in theirs.named_parameters() if p.dtype == torch.float32]
    assert len(kept) == len(wide) == 4 + 2 + 2 * 2 + 1
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == (torch.float32 if name in kept else torch.bfloat16)


@pytest.mark.parametrize("steps", [(1, 1, 1), (5, 1, 2), (1, 4, 1)])
@pytest.mark.parametrize("kind", ["mid", "distilled"])
def test_steps_of_any_length_per_scale(
    pipes: dict[str, Pipeline], kind: str, steps: tuple[int, int, int]
) -> None:
    pipe = pipes[kind]
    fields = {**QUICK, "steps": steps, "guidance_scale": 1.0}
    if kind == "distilled":
        fields["amplify_first_chunk"] = False
    sizes: list[int] = []
    handle = pipe.transformer.register_forward_hook(
        lambda _, inputs, __: sizes.append(inputs[0].shape[-1])
    )
    pipe(PROMPT, **fields)
    handle.remove()
    assert sizes == [4] * steps[0] + [8] * steps[1] + [16] * steps[2]


def test_only_the_first_chunk_is_amplified(pipes: dict[str, Pipeline]) -> None:
    pipe = pipes["distilled"]
    fields = {**QUICK, "num_frames": 99}
    assert calls(pipe.transformer, lambda: pipe(PROMPT, **fields)) == 12 + 6 + 6


def test_skipped_first_steps_ask_the_model_nothing(pipes: dict[str, Pipeline]) -> None:
    pipe = pipes["mid"]
    fields = {**QUICK, "steps": (4, 1, 1)}
    assert calls(pipe.transformer, lambda: pipe(PROMPT, **fields)) == 2 * (4 - 2 + 1 + 1)


def test_shift_moves_the_finer_scales_alone(
    pipes: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipes["distilled"]
    told: dict[str, list[int]] = {}
    rows = Engine.rows
    for shift in ("published", "consistent"):
        times = told.setdefault(shift, [])

        def noted(engine: Engine, timestep: torch.Tensor, times: list[int] = times) -> Any:
            times.append(int(timestep))
            return rows(engine, timestep)

        monkeypatch.setattr(Engine, "rows", noted)
        pipe(PROMPT, shift=shift, amplify_first_chunk=False, **QUICK)
    monkeypatch.undo()
    assert told["published"][:2] == told["consistent"][:2]
    assert told["published"][3] < told["consistent"][3]
    assert told["published"][5] < told["consistent"][5]
    default = pipe(PROMPT, **QUICK).latents
    assert torch.equal(default, pipe(PROMPT, shift="published", **QUICK).latents)


def test_ours_is_marked_consistent_and_diffusers_still_loads_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pipe = helios.load(folders["distilled"], "cpu", "float32")
    pipe.schedule = type(pipe.schedule)(dynamic=pipe.schedule.dynamic, lag=False)
    folder = pipe.save(tmp_path / "ours")
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["shift_mode"] == "consistent"
    assert not helios.load(folder, "cpu", "float32").schedule.lag
    assert published_pipeline(folder).scheduler.config.time_shift_type == "linear"


@pytest.mark.parametrize("kind", KINDS)
def test_a_shorter_video_is_the_beginning_of_a_longer_one(
    pipes: dict[str, Pipeline], kind: str
) -> None:
    fields: dict[str, Any] = {**QUICK, "steps": 2 if kind == "base" else (1, 1, 1)}
    short = pipes[kind](PROMPT, **fields).latents
    longer = pipes[kind](PROMPT, **{**fields, "num_frames": 66}).latents
    assert torch.equal(short, longer[:, :CHUNK_LATENTS])
