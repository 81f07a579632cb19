"""Stage 1: flow matching on windows with a damaged past (training.md 1.2, 2, 3; tiny.md 4)."""

from __future__ import annotations

import copy
import importlib.util
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from helios.codec import load_codec
from helios.conditioning import TextEncoder, load_text_encoder, tiny_umt5, word_tokenizer
from helios.data import Batch, RingConfig, SceneLatents
from helios.data.scenes import VOCABULARY, caption, sample_scenes
from helios.diffusion import ScheduleConfig, draw_sigma, mix, velocity
from helios.distributed import World
from helios.errors import CheckpointError
from helios.geometry import CHUNK_FRAMES
from helios.history import CorruptionConfig, DropConfig, corrupt, cut_window, drop_history
from helios.model import HeliosTransformer, TransformerConfig, load_transformer, reset_parameters
from helios.pipeline import GenerationConfig, Pipeline, Video
from helios.training.sheet import write_sheet
from helios.training.stage import go_to, position

__all__ = ["Emphasis", "NoiseLaw", "Stage1", "Stage1Config", "TextSize"]

TIMESTEPS = 1000.0
STORED = torch.float16
"""What the resulting model is written in."""


@dataclass(frozen=True, kw_only=True)
class NoiseLaw:
    """How noise levels are drawn: ``sigmoid(std * N + mean)``, some of them uniform instead.

    Attributes:
        mean, std: of the normal number in the sigmoid.
        uniform_share: share of levels that are uniform between 0 and 1.
    """

    mean: float = 0.5
    std: float = 1.1
    uniform_share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        if not self.std > 0 or not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite and std positive, got {self.mean}, {self.std}")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share must be from 0 to 1, got {self.uniform_share}")


@dataclass(frozen=True, kw_only=True)
class Emphasis:
    """How much more some errors count; the weights of a batch have mean 1. Off as it stands.

    A weight may depend on the noise level as it likes. One that depends on the clean latents moves
    the optimum wherever the model still guesses, so that of what moves fades in with the share of
    the clean latents, ``1 - sigma``: once the model can see what moves, little is moved.

    Attributes:
        moving: a latent at rest counts 1, one that moves up to this much.
        threshold: a latent moves if, in the mean over channels, its distance from its mean over
            the section is more than this many deviations.
        snr_limit: weight ``min(snr, limit) / limit`` with ``snr = ((1 - sigma) / sigma)^2``, which
            takes weight from high noise; None: every noise level counts the same.
    """

    moving: float = 1.0
    threshold: float = 0.5
    snr_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would reward errors."""
        if not 1 <= self.moving < math.inf:
            raise ValueError(f"moving must be at least 1, got {self.moving}")
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        if self.snr_limit is not None and not 0 < self.snr_limit < math.inf:
            raise ValueError(f"snr_limit must be positive, got {self.snr_limit}")

    @property
    def off(self) -> bool:
        """Whether every error counts the same."""
        return self.moving == 1 and self.snr_limit is None

    def weights(self, clean: Tensor, sigma: Tensor) -> Tensor:
        """Weights of the errors, mean 1, ``[B, 1, T, h, w]``.

        Args:
            clean: ``[B, C, T, h, w]`` normalised latents.
            sigma: ``[B]`` noise levels.
        """
        level = sigma.view(-1, 1, 1, 1, 1)
        weight = torch.ones_like(clean[:, :1])
        if self.moving > 1:
            distance = (clean - clean.mean(dim=2, keepdim=True)).square().mean(1, keepdim=True)
            moves = (distance > self.threshold**2).to(clean.dtype)
            weight = weight + (self.moving - 1) * (1 - level) * moves
        if self.snr_limit is not None:
            snr = ((1 - level) / level.clamp_min(1e-4)).square()
            weight = weight * (snr.clamp_max(self.snr_limit) / self.snr_limit)
        return weight / weight.mean().clamp_min(1e-6)


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


@dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """How a transformer and its text encoder learn from scenes.

    Attributes:
        transformer: what is trained; its ``text_dim`` is the width of the text encoder too.
        text: size of the text encoder.
        codec: folder of the autoencoder: itself, or a model or run folder that holds one.
        initial: model folder whose transformer and text encoder training starts from.
        data: pictures and their ring.
        sections: sections of 33 frames in a clip.
        first_share: share of windows that are the first section of a clip; the others are equally
            often each later one.
        wordings: of a clip's caption that are kept ready.
        batch: clips per batch and rank.
        noise: how noise levels are drawn.
        emphasis: how much more some errors count.
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
    data: RingConfig = field(default_factory=RingConfig)
    sections: int = 4
    first_share: float = 0.3
    wordings: int = 8
    batch: int = 128
    noise: NoiseLaw = field(default_factory=NoiseLaw)
    emphasis: Emphasis = field(default_factory=Emphasis)
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

    def build(self, world: World, *, seed: int, compiled: bool) -> Stage1:
        """The stage with fresh or given parameters.

        Raises:
            ValueError: if no codec is named.
            CheckpointError: if a folder does not hold what it should.
        """
        return Stage1(self, world, seed=seed, compiled=compiled)


class Stage1:
    """Learns the velocity of a section, given its past and its caption.

    Args:
        config: everything it needs.
        world: this rank.
        seed: of parameters, scenes and noise.
        compiled: whether to compile the transformer's blocks and the renderer.
    """

    def __init__(self, config: Stage1Config, world: World, *, seed: int, compiled: bool) -> None:
        self.config = config
        self._device = world.device
        self._seed, self._compiled = seed, compiled
        narrow = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        self._codec_folder = find_codec(config.codec)
        self._codec = load_codec(
            self._codec_folder, device=world.device, dtype=narrow, encoder_dtype=narrow
        )
        self._codec.network.requires_grad_(False)
        torch.manual_seed(seed)
        transformer, text = self._networks()
        self.model: nn.Module = nn.ModuleDict({"transformer": transformer, "text": text}).to(
            world.device
        )
        if compiled:
            for block in transformer.blocks:
                block.compile(dynamic=False)
        self._empty = text.tokenize([""])[0].to(world.device)
        self._noise = torch.Generator(world.device)
        self._noise.manual_seed((seed << 16) + world.rank)
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

    def prepare(self) -> None:
        """Render and encode the first clips."""
        self._data.prepare()

    def batch(self, progress: float) -> Batch:
        """Random clips of the ring."""
        return self._data.batch()

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean squared error of the velocity, over windows cut from the batch."""
        error, clean, sigma, first = self._errors(self.model, batch, self._noise)
        each = error.mean(dim=(1, 2, 3, 4))
        scalars = {"loss_first": (each * first).sum() / first.sum().clamp_min(1)}
        if self.config.emphasis.off:
            return each.mean(), scalars
        scalars["loss_plain"] = each.mean()
        return (self.config.emphasis.weights(clean, sigma) * error).mean(), scalars

    def _errors(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Squared errors ``[B, C, T, h, w]``, the clean latents likewise, and per sample the noise
        level and whether it is a first section, 1 or 0.
        """
        config, device, size = self.config, self._device, len(batch)
        transformer, text_encoder = _parts(model)
        section = self._sections(size, generator)
        window, clean = cut_window(batch.latents.float(), section)
        window = drop_history(window, config.drop, generator)
        window = corrupt(window, config.corruption, generator)
        law = config.noise
        sigma = draw_sigma(
            size,
            mean=law.mean,
            std=law.std,
            uniform_share=law.uniform_share,
            generator=generator,
            device=device,
        )
        noise = torch.randn(clean.shape, generator=generator, device=device)
        tokens = self._dropped(batch.tokens, generator)
        text = text_encoder(tokens, (tokens != 0).long())
        made = transformer(mix(clean, noise, sigma), TIMESTEPS * sigma, text, window)
        error = (made.float() - velocity(clean, noise)).square()
        return error, clean, sigma, (section == 0).float()

    def _sections(self, size: int, generator: torch.Generator) -> Tensor:
        """Which section of its clip each sample learns, ``[B]`` int64."""
        device, last = self._device, self.config.sections - 1
        if last == 0:
            return torch.zeros(size, dtype=torch.int64, device=device)
        first = torch.rand(size, generator=generator, device=device) < self.config.first_share
        later = torch.randint(1, last + 1, (size,), generator=generator, device=device)
        return torch.where(first, 0, later)

    def _dropped(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Captions ``[B, L]``, some of them replaced by the empty one."""
        draw = torch.rand(len(tokens), 1, generator=generator, device=self._device)
        return torch.where(draw < self.config.caption_dropout, self._empty, tokens)

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the scenes and the noise generator."""
        return position(self._data, self._noise)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position."""
        go_to(state, self._data, self._noise)

    def sample(self, averaged: nn.Module, folder: Path) -> None:
        """Videos of unseen captions, made as users make them: one MP4 each and one sheet.

        Where PyAV is missing there is the sheet alone.
        """
        if not self.config.sample_clips:
            return
        pipeline = self._pipeline(averaged, torch.float32)
        frames = self.config.sample_chunks * CHUNK_FRAMES
        prompts = self._prompts(self.config.sample_clips)
        narrow = self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=narrow):
            videos = [
                cast(Video, pipeline(prompt, num_frames=frames, seed=index))
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

    def save(self, averaged: nn.Module, folder: Path) -> None:
        """Write the whole model in float16."""
        self._pipeline(copy.deepcopy(averaged), STORED).save(folder, overwrite=True)

    def _networks(self) -> tuple[HeliosTransformer, TextEncoder]:
        config = self.config
        if config.initial is not None:
            transformer = load_transformer(config.initial / "transformer")
            if transformer.config != config.transformer:
                raise CheckpointError(
                    f"{config.initial} has a transformer of another shape than stage.transformer"
                )
            return transformer, load_text_encoder(config.initial)
        transformer = HeliosTransformer(config.transformer)
        reset_parameters(transformer)
        size = config.text
        text = tiny_umt5(
            word_tokenizer(VOCABULARY, size.length),
            config.transformer.text_dim,
            size.layers,
            size.heads,
            size.head_dim,
            size.ffn,
        )
        return transformer, text

    def _pipeline(self, model: nn.Module, dtype: torch.dtype) -> Pipeline:
        """The pipeline users run, around ``model`` and the autoencoder as it was written."""
        transformer, text = _parts(model.to(dtype))
        codec = load_codec(
            self._codec_folder, device=self._device, dtype=dtype, encoder_dtype=dtype
        )
        return Pipeline(
            transformer, codec, text, self.config.generation, self.config.schedule, name="tiny"
        )

    def _prompts(self, count: int) -> list[str]:
        scenes = sample_scenes(count, self._seed, split="test")
        rng = random.Random(self._seed)
        return [caption(scene, rng) for scene in scenes]

    @torch.no_grad()
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Loss on scenes and with noise that are the same for every run of this configuration."""
        config, size = self.config, self.config.data.group
        if not config.validation_clips:
            return {}
        data = SceneLatents(
            config.data,
            self._codec,
            _parts(averaged)[1].tokenize,
            sections=config.sections,
            wordings=1,
            batch_size=size,
            seed=0,
            split="test",
            compiled=self._compiled,
        )
        generator = torch.Generator(self._device).manual_seed(0)
        errors = []
        narrow = self._device.type == "cuda"
        for index in range(math.ceil(config.validation_clips / size)):
            latents, tokens = data.group(index)
            batch = Batch(latents=latents, tokens=tokens[:, 0])
            with torch.autocast(self._device.type, torch.bfloat16, enabled=narrow):
                errors.append(self._errors(averaged, batch, generator)[0].mean(dim=(1, 2, 3, 4)))
        return {"unseen_loss": float(torch.cat(errors).mean())}


def _parts(model: nn.Module) -> tuple[HeliosTransformer, TextEncoder]:
    """Transformer and text encoder of what the stage trains, or of a copy of it."""
    modules = cast(nn.ModuleDict, model)
    return cast(HeliosTransformer, modules["transformer"]), cast(TextEncoder, modules["text"])


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
