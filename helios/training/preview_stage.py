"""Training of a preview decoder by distillation: it learns what the codec itself decodes.

Windows of scenes go through the frozen codec; their latents are what the small decoder reads, the
codec's frames what it aims at. No picture is needed beyond those the codec was made for, and any
codec will do (specification "performance", section 3c, 20).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from helios.codec import (
    Codec,
    PreviewCodec,
    PreviewConfig,
    PreviewDecoder,
    load_codec,
    load_preview,
)
from helios.codec import save_preview as write_preview
from helios.data import RingConfig, SceneFrames
from helios.distributed import World
from helios.errors import CheckpointError
from helios.geometry import CHUNK_FRAMES
from helios.training.codec_stage import measure_psnr, moving
from helios.training.networks import find_codec
from helios.training.sheet import write_sheet
from helios.training.stage import go_to, position

__all__ = ["PreviewStage", "PreviewStageConfig"]


@dataclass(frozen=True, kw_only=True)
class PreviewStageConfig:
    """How a preview decoder is trained.

    Attributes:
        preview: its shape.
        codec: folder of the autoencoder it stands in for: itself, or a model or run that holds one.
        initial: folder of a preview decoder that training starts from, of the same shape.
        data: pictures and their ring.
        batch: windows of 33 frames per batch.
        window: pixels a side of a window; whole latent cells.
        moving_weight: how much a moving pixel counts; one at rest counts 1.
        gradient_weight: of the absolute error of differences between neighbouring pixels.
        validation_clips: clips of unseen attribute combinations for the report; 0: no report.
    """

    preview: PreviewConfig
    codec: Path
    initial: Path | None = None
    data: RingConfig = field(default_factory=RingConfig)
    batch: int = 4
    window: int = 64
    moving_weight: float = 3.0
    gradient_weight: float = 0.5
    validation_clips: int = 32

    def __post_init__(self) -> None:
        """Refuse windows that do not fold into latents."""
        if self.batch < 1 or self.validation_clips < 0:
            raise ValueError("batch must be at least 1, validation_clips not negative")
        if self.window < 1 or self.window % self.preview.pixels:
            raise ValueError(
                f"window must be a multiple of {self.preview.pixels} pixels, got {self.window}"
            )
        if self.moving_weight < 1 or not 0 <= self.gradient_weight < math.inf:
            raise ValueError("moving_weight must be at least 1, gradient_weight not negative")

    def build(self, world: World, *, seed: int, compiled: bool) -> PreviewStage:
        """The stage with a fresh decoder.

        Raises:
            CheckpointError: if ``codec`` holds no autoencoder, or ``initial`` no fitting decoder.
            ValueError: if the decoder's shape does not fit it.
        """
        return PreviewStage(self, world, seed=seed, compiled=compiled)


class Seen(NamedTuple):
    """A batch: latents ``[B, 16, 9, h, w]``, and the codec's frames ``[B, 3, 33, H, W]``."""

    latents: Tensor
    frames: Tensor


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A batch; its length counts frames."""

    seen: Seen

    def __len__(self) -> int:
        """Frames in the batch."""
        return self.seen.frames.shape[0] * self.seen.frames.shape[2]


class PreviewStage:
    """Learns to decode as the codec does.

    Args:
        config: everything it needs.
        world: this rank.
        seed: of parameters, scenes and windows.
        compiled: whether to generate kernels for the renderer.
    """

    def __init__(
        self, config: PreviewStageConfig, world: World, *, seed: int, compiled: bool
    ) -> None:
        self.config = config
        self._device = world.device
        self._codec = load_codec(find_codec(config.codec), device=world.device)
        torch.manual_seed(seed)
        decoder = PreviewDecoder(config.preview)
        if config.initial is not None:
            decoder = load_preview(config.initial, self._codec)
            if decoder.config != config.preview:
                raise CheckpointError(
                    f"{config.initial} has a preview decoder of another shape than stage.preview"
                )
        PreviewCodec(self._codec, decoder)  # refuses one of another shape
        self.model: nn.Module = decoder.to(world.device).train()
        self._data = SceneFrames(
            config.data, world.device, seed=seed, rank=world.rank, compiled=compiled
        )
        self._seed, self._compiled = seed, compiled
        self._noise = torch.Generator(world.device)
        self._noise.manual_seed((seed << 16) + world.rank)

    def prepare(self) -> None:
        """Render the first clips."""
        self._data.prepare()

    @torch.no_grad()
    def batch(self, progress: float) -> Windows:
        """Random windows, through the codec and back."""
        frames = self._cut(self._data.batch(self.config.batch, CHUNK_FRAMES))
        latents = self._codec.encode(frames)
        return Windows(seen=Seen(latents, self._codec.decode(latents)))

    def _cut(self, frames: Tensor) -> Tensor:
        """One window of all clips, at whole cells."""
        side, cell = self.config.window, self.config.preview.pixels
        for dim in (-2, -1):
            room = (frames.shape[dim] - side) // cell
            if room < 0:
                continue
            place = torch.randint(
                room + 1, (1,), generator=self._noise, device=self._noise.device
            ).item()
            frames = frames.narrow(dim, cell * int(place), side)
        return frames

    def loss(self, batch: Windows) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Weighted absolute error of pixels, and of their differences."""
        config, (latents, frames) = self.config, batch.seen
        made = self.model(latents).float()
        weight = 1 + (config.moving_weight - 1) * moving(frames).float()
        total = weight.sum() * frames.shape[1]
        error = made - frames
        absolute = (weight * error.abs()).sum() / total
        down = (weight[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()).sum()
        across = (weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).sum()
        gradient = (down + across) / (2 * total)
        loss = absolute + config.gradient_weight * gradient
        return loss, {"absolute": absolute, "gradient": gradient}

    def state_dict(self) -> dict[str, Tensor]:
        """Position in the scenes and the windows."""
        return position(self._data, self._noise)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a position."""
        go_to(state, self._data, self._noise)

    def sample(self, averaged: nn.Module, folder: Path) -> None:
        """A sheet of unseen scenes as the codec decodes them, each above the preview."""
        preview, rows = self._previewing(averaged), []
        for one in self._unseen(4):
            rows += [self._codec.decode_uint8(one), preview.decode_uint8(one)]
        write_sheet(folder / "preview.png", [row[0].cpu().numpy() for row in rows])

    def save(self, averaged: nn.Module, folder: Path) -> None:
        """Write ``folder/preview``."""
        write_preview(cast(PreviewDecoder, averaged), folder / "preview", self._codec)

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Peak signal-to-noise ratios against the codec's own frames, on unseen scenes."""
        preview, found = self._previewing(averaged), []
        for one in self._unseen(self.config.validation_clips):
            true, made = self._codec.decode_uint8(one), preview.decode_uint8(one)
            found.append(measure_psnr(true, made))
        if not found:
            return {}
        moved = [one.moving for one in found if not math.isnan(one.moving)]
        return {
            "psnr": sum(one.mean for one in found) / len(found),
            "psnr_worst": min(one.worst for one in found),
            "psnr_moving": sum(moved) / len(moved) if moved else math.nan,
        }

    def _previewing(self, averaged: nn.Module) -> Codec:
        return PreviewCodec(self._codec, cast(PreviewDecoder, averaged))

    @torch.no_grad()
    def _unseen(self, count: int) -> list[Tensor]:
        """Latents of ``count`` clips of attribute combinations that training never shows."""
        if not count:
            return []
        groups = math.ceil(count / self.config.data.group)
        still = replace(self.config.data, first_groups=groups, groups=groups, refresh_every=0)
        data = SceneFrames(
            still, self._device, seed=self._seed, split="test", compiled=self._compiled
        )
        data.prepare()
        clips = data.batch(count, CHUNK_FRAMES)
        return [self._codec.encode(clip) for clip in clips.split(1)]
