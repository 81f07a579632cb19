"""What the stages that learn a velocity from scenes have in common: data, networks, results.

Stage 1 learns it at full resolution, stage 2 at three; all else is the same and is here.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from helios.data import Batch, RingConfig, SceneLatents
from helios.diffusion import ScheduleConfig
from helios.distributed import World
from helios.history import CorruptionConfig, DropConfig
from helios.model import (
    HeliosTransformer,
    LoraConfig,
    TransformerConfig,
    adapters_of,
    new_adapter,
)
from helios.pipeline import GenerationConfig, Pipeline
from helios.training.examples import Example, cut_example, drop_captions, read_tokens
from helios.training.networks import (
    TextSize,
    build_pipeline,
    find_codec,
    frozen_codec,
    load_networks,
    new_networks,
    parts_of,
    unseen_prompts,
    write_samples,
)
from helios.training.stage import go_to, position

__all__ = ["FlowConfig", "FlowStage"]

STORED = torch.float16
"""What the resulting model is written in."""
ADAPTER = "stage"
"""Name of the adapter that a stage trains."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How a transformer learns from scenes, whatever its objective.

    Attributes:
        transformer: what is trained; its ``text_dim`` is the width of the text encoder too.
        text: size of a fresh text encoder.
        codec: folder of the autoencoder: itself, or a model or run folder that holds one; if not
            given, that of ``initial``.
        initial: model or run folder whose transformer and text encoder training starts from.
        adapter: learn low-rank factors and some whole layers beside a transformer that stays as
            it is, which the result has merged in; none: learn every parameter.
        text_learns: whether the text encoder learns too.
        data: pictures and their ring.
        sections: sections of 33 frames in a clip.
        first_share: share of windows that are the first section of a clip; the others are equally
            often each later one.
        wordings: of a clip's caption that are kept ready.
        batch: clips per batch and rank.
        drop: how often the past is shortened.
        corruption: how the past is damaged.
        caption_dropout: share of captions replaced by the empty one, for guidance.
        generation: what the resulting model makes by default; samples use it.
        schedule: noise levels of the resulting model when it generates.
        validation_clips: of unseen attribute combinations, for the loss in the report; 0: none.
        sample_clips: of unseen combinations, captions of which the samples show.
        sample_chunks: chunks of each sample.
    """

    transformer: TransformerConfig
    text: TextSize = field(default_factory=TextSize)
    codec: Path | None = None
    initial: Path | None = None
    adapter: LoraConfig | None = None
    text_learns: bool = True
    data: RingConfig = field(default_factory=RingConfig)
    sections: int = 4
    first_share: float = 0.3
    wordings: int = 8
    batch: int = 128
    drop: DropConfig = field(default_factory=DropConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    caption_dropout: float = 0.1
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation_clips: int = 128
    sample_clips: int = 6
    sample_chunks: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("sections", "wordings", "batch", "sample_chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("validation_clips", "sample_clips"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("first_share", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")


class FlowStage(ABC):
    """Learns the velocity of a section, given its past and its caption.

    Args:
        config: everything it needs.
        world: this rank.
        seed: of parameters, scenes and noise.
        compiled: whether to compile the transformer's blocks and the renderer.

    Raises:
        ValueError: if no codec is named, or an adapter has nothing to learn beside.
        CheckpointError: if a folder does not hold what it should.
    """

    config: FlowConfig

    def __init__(self, config: FlowConfig, world: World, *, seed: int, compiled: bool) -> None:
        self.config = config
        self.device = world.device
        self._seed, self._compiled = seed, compiled
        if config.adapter is not None and config.initial is None:
            raise ValueError(
                "this preset learns beside a trained model: give --initial DIR, the model that it "
                "starts from"
            )
        self._codec_folder = find_codec(config.codec or config.initial)
        self._codec = frozen_codec(self._codec_folder, world.device)
        torch.manual_seed(seed)
        self.model: nn.Module = self._learning().to(world.device)
        transformer, text = parts_of(self.model)
        if config.adapter is not None:
            transformer.requires_grad_(False)
            adapter = new_adapter(transformer, config.adapter)
            adapters_of(transformer).add(ADAPTER, adapter)
            self.model.add_module("adapter", adapter)
        if not config.text_learns:
            text.requires_grad_(False)
        if compiled:
            self._compile(transformer)
        self._empty = text.tokenize([""])[0].to(world.device)
        self.noise = torch.Generator(world.device)
        self.noise.manual_seed((seed << 16) + world.rank)
        self._data = SceneLatents(
            config.data,
            self._codec,
            text.tokenize,
            sections=config.sections,
            wordings=config.wordings,
            batch_size=config.batch,
            seed=seed,
            rank=world.rank,
            compiled=compiled,
        )

    def _learning(self) -> nn.Module:
        config = self.config
        transformer, text = (
            new_networks(config.transformer, config.text)
            if config.initial is None
            else load_networks(config.initial, config.transformer)
        )
        return nn.ModuleDict({"transformer": transformer, "text": text})

    def _compile(self, transformer: HeliosTransformer) -> None:
        """Compile what the loss runs most."""
        for block in transformer.blocks:
            block.compile(dynamic=False)

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch and named scalars to log, all on the device."""

    @abstractmethod
    def losses(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Losses of each sample ``[B]`` by name, without any emphasis: what is measured."""

    def prepare(self) -> None:
        """Render and encode the first clips."""
        self._data.prepare()

    def batch(self, progress: float) -> Batch:
        """Random clips of the ring."""
        return self._data.batch()

    def example(self, batch: Batch, generator: torch.Generator) -> Example:
        """Sections and their damaged pasts, cut from the clips of ``batch``."""
        return cut_example(
            batch.latents,
            first_share=self.config.first_share,
            drop=self.config.drop,
            corruption=self.config.corruption,
            generator=generator,
        )

    def read(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Embeddings ``[B, L, D]`` of the captions, some of which are dropped."""
        share = self.config.caption_dropout
        return read_tokens(
            parts_of(model)[1], drop_captions(batch.tokens, self._empty, share, generator)
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the scenes and the noise generator."""
        return position(self._data, self.noise)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position."""
        go_to(state, self._data, self.noise)

    def sample(self, averaged: nn.Module, folder: Path) -> None:
        """Videos of unseen captions, made as users make them: one MP4 each and one sheet."""
        config = self.config
        if config.sample_clips:
            prompts = unseen_prompts(config.sample_clips, self._seed)
            pipeline = self._pipeline(averaged.to(torch.float32))
            write_samples(pipeline, prompts, config.sample_chunks, folder)

    def save(self, averaged: nn.Module, folder: Path) -> None:
        """Write the whole model in float16, what was learnt beside it merged in."""
        merged = copy.deepcopy(averaged)
        adapters_of(parts_of(merged)[0]).merge(keep=False)
        self._pipeline(merged.to(STORED)).save(folder, overwrite=True)

    def _pipeline(self, model: nn.Module) -> Pipeline:
        config = self.config
        return build_pipeline(
            *parts_of(model), self._codec_folder, config.generation, config.schedule
        )

    @torch.no_grad()
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Losses on scenes and with noise that are the same for every run of this configuration."""
        config, size = self.config, self.config.data.group
        if not config.validation_clips:
            return {}
        data = SceneLatents(
            config.data,
            self._codec,
            parts_of(averaged)[1].tokenize,
            sections=config.sections,
            wordings=1,
            batch_size=size,
            seed=0,
            split="test",
            compiled=self._compiled,
        )
        generator = torch.Generator(self.device).manual_seed(0)
        found: dict[str, list[Tensor]] = {}
        narrow = self.device.type == "cuda"
        for index in range(math.ceil(config.validation_clips / size)):
            latents, tokens = data.group(index)
            batch = Batch(latents=latents, tokens=tokens[:, 0])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
                for name, each in self.losses(averaged, batch, generator).items():
                    found.setdefault(f"unseen_{name}", []).append(each)
        return {name: float(torch.cat(each).mean()) for name, each in found.items()}
