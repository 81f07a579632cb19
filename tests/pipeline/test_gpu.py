"""On a CUDA device: graphs, the fast decoder and look-ahead change no result."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import helios
from helios.codec import AutoencoderConfig
from helios.diffusion import Pyramid
from helios.evaluation import random_codec, random_transformer
from helios.kernels import plain
from helios.model import TransformerConfig
from helios.pipeline import EngineConfig, GenerationConfig, Pipeline, Request
from helios.presets import generation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:this checkpoint was trained"),
]


def pipeline(**engine: object) -> Pipeline:
    device = torch.device("cuda")
    network = TransformerConfig(
        num_attention_heads=4,
        attention_head_dim=64,
        rope_dim=(24, 20, 20),
        text_dim=32,
        freq_dim=32,
        ffn_dim=512,
        num_layers=3,
    )
    return Pipeline(
        random_transformer(network, device, torch.bfloat16),
        random_codec(AutoencoderConfig(base_dim=32, num_res_blocks=1), device, torch.bfloat16),
        None,
        GenerationConfig(
            height=128,
            width=192,
            plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
            guidance=None,
            distilled=True,
        ),
        generation.published_schedule(distilled=True),
        engine=EngineConfig(**engine),  # type: ignore[arg-type]
    )


def request(frames: int = 132) -> Request:
    words = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    return Request(prompt_embeds=words, num_frames=frames, seed=3)


def test_graphs_replay_what_would_have_been_launched() -> None:
    launched, replayed = pipeline(graphs=False), pipeline()
    assert replayed.engine.graphed
    for one, two in zip(launched.stream(request()), replayed.stream(request()), strict=True):
        assert torch.equal(one.latents, two.latents)
        assert np.array_equal(one.frames, two.frames)


def test_another_prompt_and_other_weights_reach_a_recorded_graph() -> None:
    launched, replayed = pipeline(graphs=False), pipeline()
    words = torch.randn(32, 32, generator=torch.Generator().manual_seed(2))
    for embeds in (words, 2 * words):
        asked = Request(prompt_embeds=embeds, num_frames=33, seed=3)
        one, two = (next(pipe.stream(asked)) for pipe in (launched, replayed))
        assert torch.equal(one.latents, two.latents)
    for pipe in (launched, replayed):
        with torch.no_grad():
            pipe.transformer.time.project.bias.add_(0.3)
    third = [next(pipe.stream(request(33))).latents for pipe in (launched, replayed)]
    assert torch.equal(*third)


def test_a_session_makes_what_a_stream_makes() -> None:
    pipe = pipeline()
    ahead, alone = list(pipe.stream(request())), list(pipe.session(request()))
    for one, two in zip(ahead, alone, strict=True):
        assert np.array_equal(one.frames, two.frames)


@pytest.mark.parametrize("reuse", ["scale", "chunk"])
def test_reuse_is_the_same_in_graphs(reuse: str) -> None:
    frames = [
        [chunk.latents for chunk in pipeline(graphs=graphs, reuse_history=reuse).stream(request())]
        for graphs in (False, True)
    ]
    for one, two in zip(*frames, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_decoder(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    codec = random_codec(AutoencoderConfig(base_dim=96), device, dtype)
    latents = torch.randn(1, 16, 3, 12, 20, device=device)
    # TensorFloat-32 is cuDNN's default for float32; its rounding would hide everything else.
    with torch.no_grad(), plain(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        z = codec.unscaled(latents)
        wide = copy.deepcopy(codec.network).double().decode(z.double()).clamp(-1, 1)
        found = codec.decode(latents)
        network = codec.network.decode(z).clamp(-1, 1)
        bytes_made = codec.decode_uint8(latents)
    error, usual = (
        float((value.double() - wide).norm() / wide.norm()) for value in (found, network)
    )
    assert error < max(1.1 * usual, 1e-5), f"relative error {error:.2e}, the network's {usual:.2e}"
    levels = (wide.movedim(1, -1) * 127.5 + 127.5).round()
    off = float((bytes_made.double() - levels).abs().mean())
    assert off < (0.01 if dtype == torch.float32 else 2.0), f"{off:.2e} levels off"


def test_first_frame_alone() -> None:
    first: list[np.ndarray] = []
    chunk = next(pipeline().stream(request(33), first_frame=first.append))
    assert len(first) == 1
    assert np.abs(first[0].astype(int) - chunk.frames[0]).mean() < 1.0


def test_decoding_on_the_last_gpu() -> None:
    here, there = pipeline(), pipeline()
    there.decode_on(f"cuda:{torch.cuda.device_count() - 1}")
    for one, two in zip(here.stream(request()), there.stream(request()), strict=True):
        assert torch.equal(one.latents, two.latents)
        assert np.abs(one.frames.astype(int) - two.frames).max() <= 1


def test_little_memory_changes_no_frame_by_more_than_rounding() -> None:
    usual = helios.load("tiny", device="cuda")
    frugal = helios.load("tiny", device="cuda", low_memory=True)
    assert frugal.text_encoder is not None
    assert frugal.text_encoder.device.type == "cpu"
    assert not frugal.engine.graphed
    videos = [
        pipe("a red ball bounces on green grass", num_frames=66, seed=7) for pipe in (usual, frugal)
    ]
    far = np.abs(videos[0].frames.astype(int) - videos[1].frames.astype(int))
    assert far.mean() < 1.0
    eight = helios.load("tiny", device="cuda", dtype="fp8", low_memory=True)
    assert eight.precision == "fp8"
    assert eight("a red ball bounces on green grass", num_frames=33, seed=7).frames.any()
