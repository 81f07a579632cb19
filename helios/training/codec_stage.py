"""Training of the autoencoder on scenes or videos (tiny.md, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helios.codec import AutoencoderConfig, Codec, WanAutoencoder, load_codec, save_codec
from helios.data import ClipFrames, FrameRing, RingConfig, SceneFrames, read_clips, to_frames
from helios.data.scenes import Split
from helios.distributed import World
from helios.errors import CheckpointError
from helios.geometry import CHUNK_FRAMES
from helios.training.networks import find_codec
from helios.training.sheet import write_sheet
from helios.training.stage import go_to, position

__all__ = ["CodecStage", "CodecStageConfig", "Psnr", "measure_psnr", "reconstruction_loss"]

MOVING = 0.06
"""A pixel moves where a colour differs from the clip's mean by more than this, in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class CodecStageConfig:
    """How the autoencoder is trained.

    Attributes:
        autoencoder: what is trained; its latent statistics are measured at the end.
        initial: folder of an autoencoder that training starts from: itself, or a model or run
            folder that holds one.
        data: pictures and their ring.
        clips: folder of videos, or file that lists them, to learn from in place of scenes; the
            first 33 frames of each are used (`helios.data.read_clips`).
        unseen_clips: another one, for the report; with ``clips`` there is none without.
        short_frames: frames of a window in the first part of the run; 1 + a multiple of 4.
        short_batch: windows per batch there.
        short_share: share of the run that the first part takes.
        batch: windows of 33 frames per batch in the second part.
        moving_weight: how much a moving pixel counts; one at rest counts 1.
        gradient_weight: of the absolute error of differences between neighbouring pixels.
        square_weight: of the squared error.
        kl_weight: of the divergence from a standard normal, per latent element.
        latent_noise: highest share of each channel's deviation that is added to the latents as
            noise before decoding, uniform from 0 per clip; what is small beside it is not worth
            encoding.
        scale_weight: of the absolute error between the frames at half size and what latents at half
            size decode to; it keeps fine detail from hiding in fine patterns of latents.
        statistics_clips: clips that the latent statistics are measured on.
        validation_clips: clips of unseen attribute combinations for the report; 0: no report.
    """

    autoencoder: AutoencoderConfig
    initial: Path | None = None
    data: RingConfig = field(default_factory=RingConfig)
    clips: Path | None = None
    unseen_clips: Path | None = None
    short_frames: int = 17
    short_batch: int = 16
    short_share: float = 0.65
    batch: int = 8
    moving_weight: float = 4.0
    gradient_weight: float = 0.5
    square_weight: float = 4.0
    kl_weight: float = 1e-4
    latent_noise: float = 0.0
    scale_weight: float = 0.0
    statistics_clips: int = 256
    validation_clips: int = 64

    def __post_init__(self) -> None:
        """Refuse windows that do not fold into latents."""
        ratio = self.autoencoder.temporal_ratio
        if not 1 <= self.short_frames <= CHUNK_FRAMES or (self.short_frames - 1) % ratio:
            raise ValueError(
                f"short_frames must be 1 + a multiple of {ratio} up to {CHUNK_FRAMES}, "
                f"got {self.short_frames}"
            )
        for name in ("short_batch", "batch", "statistics_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.validation_clips < 0:
            raise ValueError(f"validation_clips must not be negative, got {self.validation_clips}")
        if self.unseen_clips is not None and self.clips is None:
            raise ValueError("stage.unseen_clips needs stage.clips")
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"short_share must be from 0 to 1, got {self.short_share}")
        if self.moving_weight < 1:
            raise ValueError(f"moving_weight must be at least 1, got {self.moving_weight}")
        weights = ("gradient_weight", "square_weight", "kl_weight", "latent_noise", "scale_weight")
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def build(self, world: World, *, seed: int, compiled: bool) -> CodecStage:
        """The stage with a fresh or given autoencoder.

        Raises:
            CheckpointError: if ``initial`` holds none, or one of another shape.
        """
        return CodecStage(self, world, seed=seed, compiled=compiled)


class Terms(NamedTuple):
    """Parts of the loss of a reconstruction, scalars."""

    absolute: Tensor
    gradient: Tensor
    square: Tensor
    kl: Tensor


def moving(frames: Tensor) -> Tensor:
    """``[B, 1, T, H, W]`` bool: where a pixel is not what it is on average over the clip."""
    distance = (frames - frames.mean(dim=2, keepdim=True)).abs().amax(dim=1, keepdim=True)
    return distance > MOVING


def reconstruction_loss(
    frames: Tensor, made: Tensor, mean: Tensor, logvar: Tensor, moving_weight: float
) -> Terms:
    """Weighted means of the errors, and the divergence per latent element.

    Args:
        frames: ``[B, 3, T, H, W]`` in [-1, 1].
        made: their reconstruction.
        mean: of the posterior.
        logvar: log variance of the posterior.
        moving_weight: weight of a moving pixel.
    """
    weight = 1 + (moving_weight - 1) * moving(frames).float()
    total = weight.sum() * frames.shape[1]
    error = made.float() - frames
    down = error[..., 1:, :] - error[..., :-1, :]
    across = error[..., 1:] - error[..., :-1]
    gradient = (weight[..., 1:, :] * down.abs()).sum() + (weight[..., 1:] * across.abs()).sum()
    mean, logvar = mean.float(), logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return Terms(
        (weight * error.abs()).sum() / total,
        gradient / (2 * total),
        (weight * error.square()).sum() / total,
        kl,
    )


class Psnr(NamedTuple):
    """Peak signal-to-noise ratios in dB over clips of bytes."""

    mean: float
    worst: float
    moving: float


def measure_psnr(original: Tensor, made: Tensor) -> Psnr:
    """PSNR per clip, its mean and worst, and the mean on moving pixels alone.

    Args:
        original: uint8 ``[B, T, H, W, 3]``.
        made: likewise.
    """
    error = (original.float() - made.float()).square().mean(dim=-1)
    mask = moving(to_frames(original))[:, 0].float()
    whole = error.mean(dim=(1, 2, 3))
    counts = mask.sum(dim=(1, 2, 3))
    inside = (error * mask).sum(dim=(1, 2, 3)) / counts.clamp_min(1)
    values = _decibel(whole)
    moved = _decibel(inside)[counts > 0]
    return Psnr(
        float(values.mean()), float(values.min()), float(moved.mean()) if len(moved) else math.nan
    )


def _decibel(square: Tensor) -> Tensor:
    return 10 * torch.log10(255**2 / square.clamp_min(1e-6))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A batch of the autoencoder.

    Attributes:
        frames: ``[B, 3, T, H, W]`` in [-1, 1].
    """

    frames: Tensor

    def __len__(self) -> int:
        """Frames in the batch: the measure of speed of an autoencoder."""
        return self.frames.shape[0] * self.frames.shape[2]


class CodecStage:
    """Learns to fold frames into latents and back.

    Args:
        config: everything it needs.
        world: this rank.
        seed: of parameters, clips and noise.
        compiled: whether to generate kernels for norms, loss and renderer.
    """

    def __init__(
        self, config: CodecStageConfig, world: World, *, seed: int, compiled: bool
    ) -> None:
        self.config = config
        self._device = world.device
        torch.manual_seed(seed)
        network = _network(config).to(world.device)
        self._measure: Callable[..., Terms] = reconstruction_loss
        if compiled:
            network.compile_norms()
            self._measure = torch.compile(reconstruction_loss, dynamic=False)
        self.model: nn.Module = network
        self._seed, self._compiled = seed, compiled
        self._data = self._frames(config.clips, seed, world.rank)
        self._unseen: FrameRing | None = None
        if config.unseen_clips is not None:
            self._unseen = self._frames(config.unseen_clips, 0, 0)
        elif config.clips is None:
            # Attribute combinations that training never shows.
            self._unseen = self._frames(None, seed, 0, split="test")
        self._noise = torch.Generator(world.device)
        self._noise.manual_seed((seed << 16) + world.rank)

    def _frames(
        self, clips: Path | None, seed: int, rank: int, *, split: Split = "train"
    ) -> FrameRing:
        """Scenes, or the videos of ``clips``."""
        data, device = self.config.data, self._device
        if clips is not None:
            return ClipFrames(read_clips(clips), data, device, seed=seed, rank=rank)
        return SceneFrames(data, device, seed=seed, rank=rank, split=split, compiled=self._compiled)

    def prepare(self) -> None:
        """Make the first clips."""
        self._data.prepare()

    def batch(self, progress: float) -> Windows:
        """Many short windows at first, then fewer whole ones."""
        config = self.config
        short = progress < config.short_share
        count = config.short_batch if short else config.batch
        frames = self._data.batch(count, config.short_frames if short else CHUNK_FRAMES)
        return Windows(frames=frames)

    def loss(self, batch: Windows) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Weighted sum of the reconstruction's errors and the divergence."""
        config, frames = self.config, batch.frames
        network = cast(WanAutoencoder, self.model)
        mean, logvar = network.posterior(frames)
        latents = mean + (0.5 * logvar).exp() * self._normal(mean.shape)
        if config.latent_noise:
            latents = latents + self._disturbance(latents.detach().float())
        made = network.decode(latents)
        with torch.autocast(self._device.type, enabled=False):
            terms = self._measure(frames, made, mean, logvar, config.moving_weight)
        loss = (
            terms.absolute
            + config.gradient_weight * terms.gradient
            + config.square_weight * terms.square
            + config.kl_weight * terms.kl
        )
        scalars = terms._asdict()
        if config.scale_weight:
            small = network.decode(F.avg_pool3d(latents.float(), (1, 2, 2))).float()
            scalars["scale"] = (small - F.avg_pool3d(frames, (1, 2, 2))).abs().mean()
            loss = loss + config.scale_weight * scalars["scale"]
        return loss, scalars

    def _normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self._noise, device=self._device)

    def _disturbance(self, latents: Tensor) -> Tensor:
        """Noise in proportion to each channel's deviation, by another share for every clip."""
        deviation = latents.std(dim=(0, 2, 3, 4), keepdim=True)
        shape = (len(latents), 1, 1, 1, 1)
        share = torch.rand(shape, generator=self._noise, device=self._device)
        return self.config.latent_noise * share * deviation * self._normal(latents.shape)

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the scenes and the noise generator."""
        return position(self._data, self._noise)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position."""
        go_to(state, self._data, self._noise)

    def sample(self, averaged: nn.Module, folder: Path) -> None:
        """A sheet of unseen clips, if there are any, each above its reconstruction."""
        codec = Codec(cast(WanAutoencoder, averaged))
        clip = (self._unseen or self._data).group(0)
        rows = []
        for index in range(min(4, len(clip))):
            rows += [clip[index : index + 1], _round_trip(codec, clip[index : index + 1])]
        write_sheet(folder / "reconstruction.png", [row[0].cpu().numpy() for row in rows])

    def save(self, averaged: nn.Module, folder: Path) -> None:
        """Measure the latents and write ``folder/vae`` in float16."""
        codec = self._with_statistics(cast(WanAutoencoder, averaged))
        save_codec(codec, folder / "vae", dtype=torch.float16)

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Peak signal-to-noise ratios on unseen clips."""
        return self._report(Codec(cast(WanAutoencoder, averaged)))

    @torch.no_grad()
    def _with_statistics(self, network: WanAutoencoder) -> Codec:
        """The codec whose latents have mean 0 and deviation 1 per channel over whole windows.

        The posterior's own variance counts: a channel that says nothing has a mean near 0
        everywhere, and dividing by that alone would blow its rounding up to a signal.
        """
        plain = Codec(network)
        size = self.config.data.group
        total = torch.zeros(2, network.config.z_dim, dtype=torch.float64, device=self._device)
        elements = 0
        for index in range(math.ceil(self.config.statistics_clips / size)):
            clip = self._data.group(index)
            for part in clip.split(4):
                mean, logvar = plain.network.posterior(to_frames(part))
                wide = mean.double()
                square = wide.square() + logvar.double().exp()
                total += torch.stack((wide.sum((0, 2, 3, 4)), square.sum((0, 2, 3, 4))))
                elements += mean.numel() // mean.shape[1]
        mean, second = (total / elements).cpu()
        return plain.with_statistics(mean.tolist(), (second - mean.square()).sqrt().tolist())

    def _report(self, codec: Codec) -> dict[str, float]:
        size, wanted = self.config.data.group, self.config.validation_clips
        unseen = self._unseen
        if unseen is None:
            return {}
        results: list[Psnr] = []
        for index in range(math.ceil(wanted / size)):
            clip = unseen.group(index)
            results += [measure_psnr(c, _round_trip(codec, c)) for c in clip.split(1)]
        if not results:
            return {}
        results = results[:wanted]
        moved = [r.moving for r in results if not math.isnan(r.moving)]
        return {
            "psnr": sum(r.mean for r in results) / len(results),
            "psnr_worst": min(r.worst for r in results),
            "psnr_moving": sum(moved) / len(moved) if moved else math.nan,
        }


def _network(config: CodecStageConfig) -> WanAutoencoder:
    """A fresh autoencoder, or the given one."""
    network = WanAutoencoder(config.autoencoder)
    if config.initial is not None:
        given = load_codec(find_codec(config.initial))
        statistics = {name: getattr(given.config, name) for name in ("latents_mean", "latents_std")}
        if replace(config.autoencoder, **statistics) != given.config:
            raise CheckpointError(
                f"{config.initial} has an autoencoder of another shape than stage.autoencoder"
            )
        network.load_state_dict(given.network.state_dict())
    return network


def _round_trip(codec: Codec, clip: Tensor) -> Tensor:
    """Bytes through latents and back, ``[B, T, H, W, 3]``."""
    return codec.decode_uint8(codec.encode(to_frames(clip)))
