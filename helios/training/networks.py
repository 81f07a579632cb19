"""The networks of a stage: where they come from, and the pipeline that users run around them."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from helios.codec import load_codec
from helios.conditioning import TextEncoder, load_text_encoder, tiny_umt5, word_tokenizer
from helios.data.scenes import VOCABULARY, caption, sample_scenes
from helios.errors import CheckpointError
from helios.geometry import CHUNK_FRAMES
from helios.model import (
    WAN_CLASS,
    HeliosTransformer,
    TransformerConfig,
    empty_transformer,
    load_transformer,
    load_wan,
    reset_parameters,
)
from helios.pipeline import GenerationConfig, Pipeline, Video
from helios.storage import read_json
from helios.training.sheet import write_sheet

if TYPE_CHECKING:
    from helios.codec import Codec
    from helios.diffusion import ScheduleConfig

__all__ = [
    "TextSize",
    "build_pipeline",
    "find_codec",
    "find_model",
    "frozen_codec",
    "load_networks",
    "new_networks",
    "parts_of",
    "unseen_prompts",
    "write_samples",
]


SWITCHES = (
    *("guidance_cross_attn", "zero_history_timestep", "restrict_self_attn"),
    *("absolute_positions", "without_anchor", "aligned_scales"),
)
"""Settings of a transformer that come without parameters."""


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """A small text encoder of the published class, trained with the transformer.

    Attributes:
        layers: blocks.
        heads: attention heads of a block.
        head_dim: channels per head.
        ffn: inner width of the feed-forward part.
        length: rows of the embeddings, the end token included.
    """

    layers: int = 2
    heads: int = 4
    head_dim: int = 40
    ffn: int = 320
    length: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for name in ("layers", "heads", "head_dim", "ffn", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def new_networks(
    config: TransformerConfig, size: TextSize
) -> tuple[HeliosTransformer, TextEncoder]:
    """A transformer and a text encoder that have learnt nothing, from torch's global generator."""
    transformer = HeliosTransformer(config)
    reset_parameters(transformer)
    tokenizer = word_tokenizer(VOCABULARY, size.length)
    text = tiny_umt5(tokenizer, config.text_dim, size.layers, size.heads, size.head_dim, size.ffn)
    return transformer, text


def load_networks(folder: Path, config: TransformerConfig) -> tuple[HeliosTransformer, TextEncoder]:
    """The transformer and the text encoder of a model or run folder, float32 on the CPU.

    A bidirectional model of Wan serves as well: see `helios.model.load_wan`. A switch of ``config``
    that needs no parameters may take away what the model had; what it was trained without cannot
    be switched on again.

    Raises:
        CheckpointError: if there is no model, or its transformer is another than ``config``.
    """
    model = find_model(folder)
    part = model / "transformer"
    bidirectional = read_json(part / "config.json").get("_class_name") == WAN_CLASS
    transformer = load_wan(part) if bidirectional else load_transformer(part)
    usual, found = TransformerConfig(), transformer.config
    differing = [
        item.name
        for item in fields(config)
        if getattr(found, item.name) != getattr(config, item.name)
    ]
    other = [
        f"{name} is {getattr(found, name)}"
        for name in differing
        if name not in SWITCHES or getattr(found, name) != getattr(usual, name)
    ]
    if other:
        raise CheckpointError(
            f"the transformer of {folder} is not that of stage.transformer: {', '.join(other)}"
        )
    if differing:
        switched = empty_transformer(config)
        switched.load_state_dict(transformer.state_dict(), assign=True)
        transformer = switched.eval()
    return transformer, load_text_encoder(model)


def parts_of(model: nn.Module) -> tuple[HeliosTransformer, TextEncoder]:
    """Transformer and text encoder of what a stage trains, or of a copy of it."""
    modules = cast(nn.ModuleDict, model)
    return cast(HeliosTransformer, modules["transformer"]), cast(TextEncoder, modules["text"])


def find_model(folder: Path) -> Path:
    """The folder in the published layout at ``folder`` or in its ``model``.

    Raises:
        CheckpointError: if none is there.
    """
    for path in (folder, folder / "model"):
        if (path / "model_index.json").is_file():
            return path
    raise CheckpointError(f"{folder} holds no model (looked for model_index.json)")


def find_codec(folder: Path | None) -> Path:
    """The autoencoder's own folder in or at ``folder``.

    Raises:
        ValueError: if none is named.
        CheckpointError: if none is there.
    """
    if folder is None:
        raise ValueError(
            "this preset needs a trained autoencoder: give --codec DIR, such as the --out folder "
            "of helios train tiny-codec"
        )
    tried: Sequence[Path] = (folder, folder / "vae", folder / "model" / "vae")
    for path in tried:
        if (path / "config.json").is_file() and list(path.glob("*.safetensors*")):
            return path
    raise CheckpointError(f"{folder} holds no autoencoder (looked for vae/config.json)")


def frozen_codec(folder: Path, device: torch.device) -> Codec:
    """The autoencoder that encodes training data: bfloat16 on CUDA, nothing of it learns."""
    narrow = torch.bfloat16 if device.type == "cuda" else torch.float32
    codec = load_codec(folder, device=device, dtype=narrow, encoder_dtype=narrow)
    codec.network.requires_grad_(False)
    return codec


def build_pipeline(
    transformer: HeliosTransformer,
    text: TextEncoder,
    codec_folder: Path,
    generation: GenerationConfig,
    schedule: ScheduleConfig,
) -> Pipeline:
    """The pipeline users run, around networks in training and the autoencoder as it was written."""
    dtype = transformer.dtype
    codec = load_codec(codec_folder, device=transformer.device, dtype=dtype, encoder_dtype=dtype)
    return Pipeline(transformer, codec, text, generation, schedule, name="tiny")


def unseen_prompts(count: int, seed: int) -> list[str]:
    """Captions of attribute combinations that training never shows."""
    rng = random.Random(seed)
    return [caption(scene, rng) for scene in sample_scenes(count, seed, split="test")]


def write_samples(pipeline: Pipeline, prompts: Sequence[str], chunks: int, folder: Path) -> None:
    """Videos made as users make them: one MP4 each and one sheet.

    Where PyAV is missing there is the sheet alone.

    Args:
        pipeline: makes them; on CUDA it computes in bfloat16 whatever its weights are.
        prompts: one for each video; its place is its seed.
        chunks: chunks of each.
        folder: made if missing.
    """
    device = pipeline.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        videos = [
            cast(Video, pipeline(prompt, num_frames=chunks * CHUNK_FRAMES, seed=index))
            for index, prompt in enumerate(prompts)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", "utf-8")
    write_sheet(folder / "sheet.png", [video.frames for video in videos])
    if importlib.util.find_spec("av") is None:
        line = f"no MP4 samples: PyAV is not installed; see {folder / 'sheet.png'}"
        print(line, file=sys.stderr)
        return
    for index, video in enumerate(videos):
        video.save(folder / f"{index:02d}.mp4")
