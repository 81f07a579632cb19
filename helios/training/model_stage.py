"""What every stage that learns a transformer has: its networks, its noise and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from helios.conditioning import TextEncoder
from helios.diffusion import ScheduleConfig
from helios.distributed import World
from helios.model import (
    HeliosTransformer,
    LoraConfig,
    TransformerConfig,
    adapters_of,
    cast,
    new_adapter,
    recompute_blocks,
    save_adapter,
)
from helios.pipeline import GenerationConfig, Pipeline
from helios.training.networks import (
    build_pipeline,
    find_codec,
    load_networks,
    parts_of,
    unseen_prompts,
    write_samples,
)
from helios.training.optim import host_copy

__all__ = ["ModelConfig", "ModelStage", "frozen_base"]

STORED = torch.float16
"""What the resulting model is written in."""
ADAPTER_NAME = "adapter.safetensors"
"""What the adapter of a run is written to, beside its model."""
ADAPTER = "stage"
"""Name of the adapter that a stage trains."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is learnt and what comes of it, whatever the data.

    Attributes:
        transformer: what is trained; its ``text_dim`` is the width of the text encoder too.
        codec: folder of the autoencoder: itself, or a model or run folder that holds one; if not
            given, that of ``initial``.
        initial: model or run folder whose transformer and text encoder training starts from.
        adapter: learn low-rank factors and some whole layers beside a transformer that stays as
            it is, which the result has merged in; none: learn every parameter.
        recompute: keep only the input of every block for the backward pass and compute the block
            again, which large models need.
        batch: clips per batch and rank.
        generation: what the resulting model makes by default; samples use it.
        schedule: noise levels of the resulting model when it generates.
        sample_clips: of unseen combinations, captions of which the samples show.
        sample_chunks: chunks of each sample.
    """

    transformer: TransformerConfig
    codec: Path | None = None
    initial: Path | None = None
    adapter: LoraConfig | None = None
    recompute: bool = False
    batch: int = 128
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sample_clips: int = 6
    sample_chunks: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("batch", "sample_chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sample_clips < 0:
            raise ValueError(f"sample_clips must not be negative, got {self.sample_clips}")


class ModelStage:
    """Networks on their device, and the model folder and samples that come of them.

    Args:
        config: everything it needs.
        world: this rank.
        seed: of parameters and noise.
        compiled: whether to compile what the loss runs most.

    Raises:
        ValueError: if a folder that is needed is not named.
        CheckpointError: if a folder does not hold what it should.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig, world: World, *, seed: int, compiled: bool) -> None:
        self.config = config
        self.device = world.device
        self._seed, self._compiled = seed, compiled
        if config.adapter is not None and config.initial is None:
            raise ValueError(
                "this preset learns beside a trained model: give --initial DIR, the model that it "
                "starts from"
            )
        self._codec_folder = find_codec(config.codec or config.initial)
        torch.manual_seed(seed)
        transformer, text = self._networks()
        if config.adapter is not None:
            transformer = frozen_base(transformer, world.device)
        transformer.to(world.device)
        if self._reads_text:
            text.to(world.device)
        self._model = nn.ModuleDict({"transformer": transformer, "text": text})
        if config.adapter is not None:
            adapter = new_adapter(transformer, config.adapter)
            adapters_of(transformer).add(ADAPTER, adapter)
            self._model["adapter"] = adapter
        if config.recompute:
            recompute_blocks(transformer)
        if compiled:
            self._compile(transformer)
        self.noise = torch.Generator(world.device)
        self.noise.manual_seed((seed << 16) + world.rank)

    @property
    def _reads_text(self) -> bool:
        """Whether captions are read while training; else the text encoder stays on the host."""
        return True

    @property
    def model(self) -> nn.Module:
        """Transformer, text encoder and, if there is one, adapter."""
        return self._model

    def _networks(self) -> tuple[HeliosTransformer, TextEncoder]:
        """What training starts from."""
        config = self.config
        if config.initial is None:
            raise ValueError(
                "this preset goes on from a trained model: give --initial DIR, the model that it "
                "starts from"
            )
        return load_networks(config.initial, config.transformer)

    def _compile(self, transformer: HeliosTransformer) -> None:
        """Compile what the loss runs most."""
        for block in transformer.blocks:
            block.compile(dynamic=False)

    def sample(self, averaged: nn.Module, folder: Path) -> None:
        """Videos of unseen captions, made as users make them: one MP4 each and one sheet."""
        config = self.config
        if config.sample_clips:
            prompts = self._prompts(config.sample_clips)
            pipeline = self._pipeline(averaged)
            write_samples(pipeline, prompts, config.sample_chunks, folder)

    def _prompts(self, count: int) -> list[str]:
        """What samples are made of."""
        return unseen_prompts(count, self._seed)

    def save(self, averaged: nn.Module, folder: Path) -> None:
        """Write the whole model in float16, what was learnt beside it merged in on the host.

        An adapter is also written by itself, as a file beside the folder.
        """
        merged = host_copy(averaged)
        adapters = adapters_of(parts_of(merged)[0])
        if self.config.adapter is not None:
            own = adapters.acting[0][0]
            save_adapter(own, folder.parent / ADAPTER_NAME, dtype=STORED)
        adapters.merge(keep=False)
        self._pipeline(merged.to("cpu", STORED)).save(folder, overwrite=True)

    def _pipeline(self, model: nn.Module) -> Pipeline:
        config = self.config
        return build_pipeline(
            *parts_of(model), self._codec_folder, config.generation, config.schedule
        )


def frozen_base(transformer: HeliosTransformer, device: torch.device) -> HeliosTransformer:
    """A transformer that an adapter learns beside: frozen, and in bfloat16 on CUDA.

    There it is multiplied in bfloat16 anyway, and takes half the memory (training.md, 1).
    """
    transformer.requires_grad_(False)
    if device.type == "cuda":
        cast(transformer, torch.bfloat16)
    return transformer
