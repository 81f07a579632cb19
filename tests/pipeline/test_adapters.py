"""LoRA in a pipeline: chunk borders, exact restoring, stacking, sessions, saving, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import helios
from helios.errors import CheckpointError, UnsafeCheckpointError
from helios.model import LoraConfig, adapters_of, new_adapter, save_adapter
from helios.pipeline import Pipeline, Request, Video, check_lora

PROMPT = "a red ball rolls on grass"
MakePipeline = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> list[Path]:
    """Two adapters for the small model, the first with whole memory patches and norms."""
    folder = tmp_path_factory.mktemp("lora")
    kinds = (LoraConfig(rank=2, memory_patches="full", norms=True), LoraConfig(rank=3, alpha=1.5))
    paths = []
    for seed, config in enumerate(kinds):
        generator = torch.Generator().manual_seed(seed)
        adapter = new_adapter(pipeline.transformer, config, generator)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        paths.append(folder / f"{seed}.safetensors")
        save_adapter(adapter, paths[-1])
    return paths


def make(pipe: Pipeline, frames: int = 33) -> Video:
    video = pipe(PROMPT, num_frames=frames, seed=3)
    assert isinstance(video, Video)
    return video


def request(chunks: int = 3) -> Request:
    return Request(prompt=PROMPT, num_frames=33 * chunks, seed=3)


def test_loaded_scaled_stacked_and_unloaded(make_pipeline: MakePipeline, files: list[Path]) -> None:
    pipe = make_pipeline()
    weights = {n: p.clone() for n, p in pipe.transformer.state_dict().items()}
    plain = make(pipe)
    pipe.load_lora(files[0], "one")
    one = make(pipe)
    pipe.load_lora(files[1], "two", scale=0.6)
    both = make(pipe)
    assert pipe.loras == {"one": 1.0, "two": 0.6}
    assert both.settings["lora"] == {"one": 1.0, "two": 0.6}
    assert "lora" not in plain.settings
    results = [video.latents for video in (plain, one, both)]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in pairwise(results))
    pipe.set_lora_scale("two", 0.0)
    assert torch.equal(make(pipe).latents, one.latents)
    pipe.unload_lora("two")
    pipe.unload_lora("one")
    assert pipe.loras == {}
    assert torch.equal(make(pipe).latents, plain.latents)
    now = pipe.transformer.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], weights[name]) for name in weights)


def test_a_stream_takes_a_change_up_with_its_next_chunk(
    make_pipeline: MakePipeline, files: list[Path]
) -> None:
    plain = [chunk.latents for chunk in make_pipeline().stream(request())]
    pipe = make_pipeline()
    stream = pipe.stream(request())
    chunks = [next(stream).latents]
    pipe.load_lora(files[0], "one")
    chunks.append(next(stream).latents)
    pipe.unload_lora("one")
    chunks.append(next(stream).latents)
    assert torch.equal(chunks[0], plain[0])
    assert not torch.allclose(chunks[1], plain[1], atol=1e-3)

    # The same by scales, with the adapter there from the start.
    other = make_pipeline()
    other.load_lora(files[0], "one", scale=0.0)
    again = []
    for chunk in other.stream(request()):
        again.append(chunk.latents)
        other.set_lora_scale("one", 1.0 if chunk.index == 0 else 0.0)
    assert all(torch.equal(a, b) for a, b in zip(again, chunks, strict=True))


def test_another_thread_waits_for_the_border(
    make_pipeline: MakePipeline, files: list[Path]
) -> None:
    plain = next(iter(make_pipeline().stream(request(1)))).latents
    pipe = make_pipeline()
    loader = threading.Thread(target=pipe.load_lora, args=(files[0], "one"))
    acting: list[int] = []

    def meddle(*_: object) -> None:
        if loader.ident is None:
            loader.start()
            loader.join(0.5)
        acting.append(len(pipe.loras))

    pipe.transformer.register_forward_pre_hook(meddle)
    stream = pipe.stream(request(2))
    first = next(stream).latents
    loader.join(10)
    assert set(acting) == {0}
    assert torch.equal(first, plain)
    next(stream)
    assert acting[-1] == 1


def test_what_cannot_be_loaded_changes_nothing(
    make_pipeline: MakePipeline, files: list[Path], tmp_path: Path
) -> None:
    pipe = make_pipeline()
    pipe.load_lora(files[1], "one")
    before = make(pipe).latents
    with pytest.raises(ValueError, match="'one' is there already"):
        pipe.load_lora(files[0], "one")
    with pytest.raises(ValueError, match="finite"):
        pipe.load_lora(files[0], "two", scale=float("inf"))
    with pytest.raises(ValueError, match="no adapter is named 'two'"):
        pipe.unload_lora("two")
    with pytest.raises(ValueError, match="no adapter is named 'two'"):
        pipe.set_lora_scale("two", 1.0)
    with pytest.raises(CheckpointError, match="missing"):
        pipe.load_lora(tmp_path / "absent.safetensors", "two")
    pickled = tmp_path / "transformer_partial.pth"
    pickled.write_bytes(b"\x80\x04N.")
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        pipe.load_lora(pickled, "two")
    assert pipe.loras == {"one": 1.0}
    assert torch.equal(make(pipe).latents, before)


def test_a_saved_folder_is_the_model_without_them_until_they_are_merged(
    make_pipeline: MakePipeline, files: list[Path], tmp_path: Path
) -> None:
    pipe = make_pipeline()
    plain = make(pipe).latents
    pipe.load_lora(files[0], "one")
    beside = make(pipe).latents
    pipe.save(tmp_path / "plain")
    assert torch.equal(make(pipe).latents, beside)
    pipe.merge_loras()
    pipe.save(tmp_path / "merged")
    assert pipe.loras == {}
    saved, merged = (helios.load(tmp_path / n, "cpu", "float32") for n in ("plain", "merged"))
    assert torch.equal(make(saved).latents, plain)
    assert torch.allclose(make(merged).latents, beside, atol=1e-4)


def test_a_session_goes_on_with_the_same_adapters_only(
    make_pipeline: MakePipeline, files: list[Path], tmp_path: Path
) -> None:
    pipe = make_pipeline()
    pipe.load_lora(files[0], "one", scale=0.5)
    session = pipe.session(request(2))
    stream = iter(session)
    next(stream)
    session.save(tmp_path / "session.safetensors")
    expected = next(stream).latents

    other = make_pipeline()
    with pytest.raises(ValueError, match="LoRA"):
        other.resume(tmp_path / "session.safetensors")
    other.load_lora(files[0], "renamed")
    with pytest.raises(ValueError, match="LoRA"):
        other.resume(tmp_path / "session.safetensors")
    other.set_lora_scale("renamed", 0.5)
    resumed = next(iter(other.resume(tmp_path / "session.safetensors")))
    assert torch.equal(resumed.latents, expected)


def test_checked_by_headers_alone(files: list[Path], tiny_random: Path) -> None:
    check_lora(files[0], tiny_random)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        check_lora(files[0], Path(helios.__file__).parent / "assets" / "tiny")


def test_half_precision_keeps_within_its_own_rounding(tiny_random: Path, files: list[Path]) -> None:
    frames = []
    for dtype in ("float32", "bfloat16"):
        pipe = helios.load(tiny_random, "cpu", dtype)
        plain = make(pipe).frames.astype(np.float32)
        pipe.load_lora(files[0], "one")
        frames.append((plain, make(pipe).frames.astype(np.float32)))
        dtypes = {p.dtype for a, _ in adapters_of(pipe.transformer).acting for p in a.parameters()}
        assert torch.float32 in dtypes
        assert (torch.bfloat16 in dtypes) == (dtype == "bfloat16")
    (plain, exact), (_, rounded) = frames
    assert np.abs(rounded - exact).mean() < 0.5 * np.abs(exact - plain).mean()
