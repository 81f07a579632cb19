"""What the stages that learn a velocity from scenes have in common: data, networks, results.

Stage 1 learns it at full resolution, stage 2 at three; all else is the same and is here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from helios.conditioning import TextEncoder
from helios.data import Batch, RingConfig, SceneLatents
from helios.distributed import World
from helios.history import CorruptionConfig, DropConfig
from helios.model import HeliosTransformer
from helios.training.examples import Example, cut_example, drop_captions, read_tokens
from helios.training.model_stage import ModelConfig, ModelStage
from helios.training.networks import TextSize, frozen_codec, new_networks, parts_of
from helios.training.stage import go_to, position

__all__ = ["FlowConfig", "FlowStage"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ModelConfig):
    """How a transformer learns from scenes, whatever its objective.

    Attributes:
        text: size of a fresh text encoder.
        text_learns: whether the text encoder learns too.
        data: pictures and their ring.
        sections: sections of 33 frames in a clip.
        first_share: share of windows that are the first section of a clip; the others are equally
            often each later one.
        wordings: of a clip's caption that are kept ready.
        drop: how often the past is shortened.
        corruption: how the past is damaged.
        caption_dropout: share of captions replaced by the empty one, for guidance.
        validation_clips: of unseen attribute combinations, for the loss in the report; 0: none.
    """

    text: TextSize = field(default_factory=TextSize)
    text_learns: bool = True
    data: RingConfig = field(default_factory=RingConfig)
    sections: int = 4
    first_share: float = 0.3
    wordings: int = 8
    drop: DropConfig = field(default_factory=DropConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    caption_dropout: float = 0.1
    validation_clips: int = 128

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        super().__post_init__()
        for name in ("sections", "wordings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.validation_clips < 0:
            raise ValueError(f"validation_clips must not be negative, got {self.validation_clips}")
        for name in ("first_share", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")


class FlowStage(ModelStage, ABC):
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
        super().__init__(config, world, seed=seed, compiled=compiled)
        self._codec = frozen_codec(self._codec_folder, world.device)
        text = parts_of(self.model)[1]
        if not config.text_learns:
            text.requires_grad_(False)
        self._empty = text.tokenize([""])[0].to(world.device)
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

    def _networks(self) -> tuple[HeliosTransformer, TextEncoder]:
        config = self.config
        if config.initial is None:
            return new_networks(config.transformer, config.text)
        return super()._networks()

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
