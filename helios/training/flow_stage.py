"""What the stages that learn a velocity from clips have in common: data, networks, results.

Stage 1 learns it at full resolution, stage 2 at three; all else is the same and is here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from helios.codec import load_codec
from helios.conditioning import TextEncoder
from helios.data import Batch, ClipLatents, RingConfig, SceneLatents
from helios.distributed import World
from helios.errors import DataError
from helios.history import CorruptionConfig, DropConfig
from helios.model import HeliosTransformer
from helios.training.examples import Example, cut_example, drop_captions, read_tokens
from helios.training.model_stage import ModelConfig, ModelStage
from helios.training.networks import TextSize, frozen_codec, new_networks, parts_of
from helios.training.stage import go_to, position

__all__ = ["FlowConfig", "FlowStage"]

WORDS_AGREE = 0.05
"""How far embeddings may differ, in their norm: stored in half precision, made in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ModelConfig):
    """How a transformer learns from clips, whatever its objective.

    Attributes:
        text: size of a fresh text encoder.
        text_learns: whether the text encoder learns too.
        data: size of the pictures, and the ring of scenes.
        clips: folder that ``helios precompute latents`` wrote, to learn from in place of scenes.
        unseen_clips: another one, for the loss in the report; with ``clips`` there is none without.
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
    clips: Path | None = None
    unseen_clips: Path | None = None
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
        if self.clips is not None and self.text_learns:
            raise ValueError(
                "captions of stage.clips are encoded already: set stage.text_learns=false, and "
                "start from the model that encoded them"
            )
        if self.unseen_clips is not None and self.clips is None:
            raise ValueError("stage.unseen_clips needs stage.clips")
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
        text = parts_of(self._model)[1]
        if not config.text_learns:
            text.requires_grad_(False)
        self._empty = text.tokenize([""])[0].to(world.device)
        self._data: SceneLatents | ClipLatents
        if config.clips is None:
            self._codec = frozen_codec(self._codec_folder, world.device)
            self._data = self._scenes(text, config.batch, rank=world.rank)
        else:
            self._data = self._folder(config.clips, config.batch, seed, world)
            self._empty_text = self._check_words(text, self._data).to(world.device)
        self._unseen_clips: ClipLatents | None = None
        if config.unseen_clips is not None and config.validation_clips:
            size = min(config.batch, config.validation_clips)
            alone = World(device=world.device)
            self._unseen_clips = self._folder(config.unseen_clips, size, 0, alone)

    @property
    def _reads_text(self) -> bool:
        return self.config.clips is None

    def _scenes(
        self, text: TextEncoder, batch: int, *, rank: int = 0, unseen: bool = False
    ) -> SceneLatents:
        """Scenes to learn from, or those that are the same for every run and that none shows."""
        config = self.config
        return SceneLatents(
            config.data,
            self._codec,
            text.tokenize,
            sections=config.sections,
            wordings=1 if unseen else config.wordings,
            batch_size=batch,
            seed=0 if unseen else self._seed,
            rank=rank,
            split="test" if unseen else "train",
            compiled=self._compiled,
        )

    def _folder(self, folder: Path, batch: int, seed: int, world: World) -> ClipLatents:
        config = self.config
        return ClipLatents(
            folder,
            size=(config.data.height, config.data.width),
            sections=config.sections,
            codec=load_codec(self._codec_folder).config,
            text_dim=config.transformer.text_dim,
            batch_size=batch,
            device=world.device,
            seed=seed,
            rank=world.rank,
            ranks=world.size,
        )

    def _check_words(self, text: TextEncoder, clips: ClipLatents) -> Tensor:
        """The embedding of the empty caption, ``[L, D]``.

        Raises:
            DataError: if the captions of ``clips`` were not encoded by ``text``.
        """
        held = clips.first_text().float()
        empty, mine = text.encode(["", *clips.captions(1)]).float().cpu()
        same = held.shape == mine.shape
        if not same or (held - mine).norm() > WORDS_AGREE * mine.norm():
            raise DataError(
                f"the captions of {clips.folder} were encoded by another text encoder; run helios "
                "precompute latents with the --model that training starts from"
            )
        return empty

    def _networks(self) -> tuple[HeliosTransformer, TextEncoder]:
        config = self.config
        # A text encoder that does not learn is somebody's.
        if config.initial is None and config.text_learns:
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
        """Random clips."""
        return self._data.batch()

    def _prompts(self, count: int) -> list[str]:
        """Captions of unseen scenes, or those of the clips."""
        if isinstance(self._data, SceneLatents):
            return super()._prompts(count)
        return self._data.captions(count)

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
        if batch.text is not None:
            text = batch.text.float()
            return drop_captions(text, self._empty_text, share, generator) if share else text
        assert batch.tokens is not None
        tokens = batch.tokens
        if share:
            tokens = drop_captions(tokens, self._empty, share, generator)
        return read_tokens(parts_of(model)[1], tokens)

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the scenes and the noise generator."""
        return position(self._data, self.noise)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position."""
        go_to(state, self._data, self.noise)

    @torch.no_grad()
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Losses on clips and with noise that are the same for every run of this configuration."""
        generator = torch.Generator(self.device).manual_seed(0)
        found: dict[str, list[Tensor]] = {}
        narrow = self.device.type == "cuda"
        for batch in self._unseen(parts_of(averaged)[1]):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
                for name, each in self.losses(averaged, batch, generator).items():
                    found.setdefault(f"unseen_{name}", []).append(each)
        return {name: float(torch.cat(each).mean()) for name, each in found.items()}

    def _unseen(self, text: TextEncoder) -> Iterator[Batch]:
        """Clips that training never shows."""
        config, wanted = self.config, self.config.validation_clips
        if self._unseen_clips is not None:
            self._unseen_clips.prepare()
            for _ in range(wanted // min(config.batch, wanted)):
                yield self._unseen_clips.batch()
        elif config.clips is None and wanted:
            scenes, size = self._scenes(text, 1, unseen=True), config.data.group
            for index in range(math.ceil(wanted / size)):
                latents, tokens = scenes.group(index)
                yield Batch(latents=latents, tokens=tokens[:, 0])
