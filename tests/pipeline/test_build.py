"""Folders: what is written, what is read, what is refused and with which words."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import helios
from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.model import quantise
from helios.pipeline import Pipeline, inspect_model, pick_device, pick_dtype, published_defaults

PROMPT = "a red ball rolls on grass"


@pytest.fixture
def copied(tiny_random: Path, tmp_path: Path) -> Path:
    """A model folder a test may damage."""
    return Path(shutil.copytree(tiny_random, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(value))


def test_a_saved_folder_loads_and_makes_the_same_video(
    pipeline: Pipeline, tiny_random: Path
) -> None:
    loaded = helios.load(tiny_random, dtype="float32")
    assert loaded.defaults == pipeline.defaults
    assert loaded.schedule == pipeline.schedule
    assert loaded.name == "small"
    one, two = (p(PROMPT, num_frames=34, seed=3) for p in (pipeline, loaded))
    assert torch.equal(one.latents, two.latents)
    assert np.array_equal(one.frames, two.frames)


def test_the_layout_is_the_published_one(tiny_random: Path) -> None:
    files = {str(path.relative_to(tiny_random)) for path in tiny_random.rglob("*.json")}
    assert {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "vae/config.json",
    } <= files
    index = json.loads((tiny_random / "model_index.json").read_text())
    assert index["_class_name"] == "HeliosPipeline"
    assert index["transformer"] == ["diffusers", "HeliosTransformer3DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["scheduler"] == ["diffusers", "HeliosScheduler"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]


def test_saving_never_destroys_what_is_not_a_model(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError):
            pipeline.save(tmp_path / "own", overwrite=overwrite)
    assert (tmp_path / "own" / "letter.txt").read_text() == "dear"
    folder = pipeline.save(tmp_path / "new" / "model")
    with pytest.raises(FileExistsError):
        pipeline.save(folder)
    pipeline.save(folder, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model"]


def test_a_failed_save_leaves_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("helios.pipeline.build.save_codec", fail)
    with pytest.raises(OSError, match="space"):
        pipeline.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unknown model 'tinny'.*did you mean 'tiny'"):
        helios.load("tinny")
    with pytest.raises(CheckpointError, match=r"known are tiny, folders .* and hub ids"):
        helios.load("some model")
    with pytest.raises(CheckpointError, match=r"offline.*did you mean 'BestWishYsh/Helios-Mid'"):
        helios.load("BestWishYs/Helios-Mid")
    (tmp_path / "file.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file"):
        helios.load(tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=r"model_index.json is missing"):
        helios.load(tmp_path)


def test_a_pickle_is_never_opened(copied: Path) -> None:
    marker = copied / "opened"

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    (copied / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with (copied / "transformer" / "diffusion_pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(), file)
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        helios.load(copied)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
def test_a_truncated_file_is_named(copied: Path, name: str) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointCorruptError, match=Path(name).name):
        helios.load(copied)


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler", "text_encoder"])
def test_a_missing_part_is_named(copied: Path, part: str) -> None:
    shutil.rmtree(copied / part)
    with pytest.raises(CheckpointError, match=part):
        inspect_model(copied)


@pytest.mark.parametrize(
    ("file", "changes", "word"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        ("model_index.json", {"transformer": ["evil", "Module"]}, "Module"),
        ("model_index.json", {"transformer": [None, None]}, "transformer"),
        ("helios.json", {"generation": {"height": 65}}, "65"),
        ("scheduler/scheduler_config.json", {"gamma": "x"}, "settings"),
    ],
)
def test_small_files_are_checked_before_weights(
    copied: Path, file: str, changes: dict, word: str
) -> None:
    edit(copied / file, **changes)
    for weights in copied.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(CheckpointError, match=word):
        inspect_model(copied)


def test_a_folder_without_text_encoder_wants_embeddings(copied: Path) -> None:
    edit(copied / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    shutil.rmtree(copied / "text_encoder")
    shutil.rmtree(copied / "tokenizer")
    bare = helios.load(copied, dtype="float32")
    with pytest.raises(ValueError, match="no text encoder"):
        bare(PROMPT)
    embeds = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    video = bare(prompt_embeds=embeds, guidance_scale=1, num_frames=33, steps=1, seed=1)
    assert len(video.frames) == 33
    again = bare.save(copied.parent / "again")
    assert not inspect_model(again).has_text_encoder


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_is_what_was_asked(tiny_random: Path, dtype: str | torch.dtype) -> None:
    pipe = helios.load(tiny_random, dtype=dtype)
    assert pipe.dtype == torch.bfloat16
    video = pipe(PROMPT, num_frames=33, steps=1, seed=1)
    assert video.settings["dtype"] == "bfloat16"
    assert video.latents.dtype == torch.float32


def test_devices_and_dtypes_that_are_not_here() -> None:
    with pytest.raises(ValueError, match="device must be"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="not here"):
        pick_device("cuda:63")
    with pytest.raises(ValueError, match="dtype must be"):
        pick_dtype("float8", torch.device("cpu"))
    with pytest.raises(ValueError, match="dtype must be auto, float32 or bfloat16, got 'fp8'"):
        pick_dtype("fp8", torch.device("cpu"))
    assert pick_dtype("fp8", torch.device("cpu"), fp8=True) == torch.float8_e4m3fn
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16


def test_fp8_is_bfloat16_with_products_in_e4m3(tiny_random: Path, tmp_path: Path) -> None:
    pipe = helios.load(tiny_random, device="cpu", dtype="fp8")
    assert (pipe.precision, pipe.dtype) == ("fp8", torch.bfloat16)
    known = helios.load(tiny_random, device="cpu", dtype="bfloat16")
    quantise(known.transformer)
    asked = {"num_frames": 33, "seed": 3, "steps": 1}
    video = pipe("a red ball", **asked)
    assert np.array_equal(video.frames, known("a red ball", **asked).frames)
    assert video.settings["dtype"] == "fp8"
    again = helios.load(pipe.save(tmp_path / "eight"), device="cpu", dtype="bfloat16")
    assert again.precision == "fp8"
    assert np.array_equal(video.frames, again("a red ball", **asked).frames)
    with pytest.raises(ValueError, match="a model in fp8 takes no LoRA: merge it first"):
        pipe.load_lora(tmp_path / "none.safetensors", "a")


def test_little_memory_is_nothing_on_a_cpu(tiny_random: Path) -> None:
    pipe = helios.load(tiny_random, device="cpu", low_memory=True)
    assert pipe.codec.group == 0
    assert pipe.ahead is None


def test_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, dtype in (
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert pick_dtype("auto", cpu) == dtype


def test_published_checkpoints_have_their_own_defaults() -> None:
    from helios.presets import generation

    pyramid = {"_class_name": "HeliosPyramidPipeline"}
    unipc, dmd = {"_class_name": "HeliosScheduler"}, {"_class_name": "HeliosDMDScheduler"}
    base = published_defaults({"_class_name": "HeliosPipeline"}, unipc)
    assert base == generation.base()
    assert published_defaults(pyramid | {"is_cfg_zero_star": True}, unipc) == generation.mid()
    distilled = generation.distilled()
    assert published_defaults(pyramid | {"is_distilled": True}, dmd) == distilled
    assert published_defaults(pyramid, dmd) == distilled
    assert (distilled.guidance, distilled.plan.steps) == (None, (2, 2, 2))
    assert (base.height, base.width, base.plan.steps) == (384, 640, 50)
