"""A small decoder for previews: latents to frames by a few convolutions, near the codec's own.

An approximation, off by default and named in the settings of what is made with it. It is trained by
distillation: its target is what the codec itself decodes (``helios train preview-decoder``). All
work but the last steps happens at the size of the latents, so a chunk costs a few per cent of the
codec's decoder. Source: specification "performance", section 3c, 20; decision record 10.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.codec.codec import Codec
from helios.errors import CheckpointError
from helios.storage import fill, open_weights, read_json, write_json, write_tensors

__all__ = [
    "PreviewCodec",
    "PreviewConfig",
    "PreviewDecoder",
    "load_preview",
    "save_preview",
]

_CLASS = "HeliosPreviewDecoder"


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """The shape of a preview decoder.

    Attributes:
        z_dim: channels of the latents.
        widths: channels at the latents' size, at twice and at four times it.
        blocks: residual blocks at the latents' size.
        frames: frames for every latent frame but the first, which holds one.
        pixels: pixels a side of a latent cell: 4 times a power of two.
    """

    z_dim: int = 16
    widths: tuple[int, int, int] = (40, 32, 16)
    blocks: int = 1
    frames: int = 4
    pixels: int = 8

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if min(self.z_dim, self.frames, *self.widths) < 1 or self.blocks < 0:
            raise ValueError("z_dim, widths and frames must be at least 1, blocks not negative")
        if self.pixels < 4 or self.pixels % 4:
            raise ValueError(f"pixels must be a multiple of 4, got {self.pixels}")


class PreviewDecoder(nn.Module):
    """Normalised latents to frames in one pass; every latent frame sees its two neighbours.

    Args:
        config: its shape.
    """

    def __init__(self, config: PreviewConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third = config.widths
        self.enter = nn.Conv3d(config.z_dim, first, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(first) for _ in range(config.blocks))
        self.twice = nn.Conv2d(first, 4 * second, 1)
        self.middle = nn.Conv2d(second, second, 3, padding=1)
        self.fourfold = nn.Conv2d(second, 4 * third, 1)
        self.fine = nn.Conv2d(third, third, 3, padding=1)
        side = config.pixels // 4
        self.end = nn.Conv2d(third, 3 * config.frames * side**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Frames, not clamped.

        Args:
            latents: ``[B, z_dim, t, h, w]``.

        Returns:
            ``[B, 3, 1 + frames (t - 1), pixels h, pixels w]`` around [-1, 1].
        """
        batch, _, count = latents.shape[:3]
        x = F.silu(self.enter(latents)).movedim(2, 1).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        x = F.silu(self.middle(F.pixel_shuffle(self.twice(x), 2)))
        x = F.silu(self.fine(F.pixel_shuffle(self.fourfold(x), 2)))
        x = F.pixel_shuffle(self.end(x), self.config.pixels // 4)
        x = x.unflatten(0, (batch, count)).unflatten(2, (self.config.frames, 3))
        # The first latent frame holds one frame of the picture: the last of its group.
        return x.flatten(1, 2)[:, self.config.frames - 1 :].movedim(2, 1)


class _Block(nn.Module):
    """Two convolutions around which the picture passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(x)))


class PreviewCodec(Codec):
    """A codec whose frames come from a preview decoder; it encodes as ever.

    Args:
        codec: the codec; its network is shared, not copied.
        preview: the decoder, moved to the codec's device and dtype.

    Raises:
        ValueError: if the decoder is for latents of another shape.
    """

    def __init__(self, codec: Codec, preview: PreviewDecoder) -> None:
        super().__init__(codec.network, codec.config)
        config, own = preview.config, codec.config
        wanted = (own.z_dim, own.temporal_ratio, own.spatial_ratio)
        if (config.z_dim, config.frames, config.pixels) != wanted:
            raise ValueError(
                "this preview decoder is for another autoencoder: it reads (channels, frames, "
                f"pixels) = {(config.z_dim, config.frames, config.pixels)}, not {wanted}; "
                "train one with: helios train preview-decoder --codec FOLDER"
            )
        self.preview = preview.to(self.device, self.dtype).eval()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See ``Codec.decode``; an approximation of it."""
        self.unscaled(latents)  # refuses what is not latents of this autoencoder
        return self.preview(latents.to(self.device, self.dtype)).float().clamp_(-1, 1)

    @torch.no_grad()
    def decode_uint8(self, latents: Tensor) -> Tensor:
        """See ``Codec.decode_uint8``; an approximation of it."""
        levels = self.decode(latents).mul_(127.5).add_(127.5).round_().to(torch.uint8)
        return levels.movedim(1, -1).contiguous()


def save_preview(decoder: PreviewDecoder, folder: Path, codec: Codec) -> None:
    """Write ``decoder`` to ``folder`` in float16, with the statistics of the latents it reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, decoder.state_dict(), dtype=torch.float16)
    values: dict[str, Any] = {"_class_name": _CLASS, **asdict(decoder.config)}
    values["latents_mean"] = list(codec.config.latents_mean)
    write_json(folder / "config.json", values)


def load_preview(folder: Path, codec: Codec) -> PreviewDecoder:
    """The preview decoder in ``folder``, for the latents of ``codec``, in float32 on the CPU.

    Raises:
        CheckpointError: if there is none, it is damaged, or was trained on another autoencoder.
    """
    values = read_json(folder / "config.json")
    if values.pop("_class_name", None) != _CLASS:
        raise CheckpointError(f"{folder} does not hold a preview decoder")
    mean = values.pop("latents_mean", None)
    if mean != list(codec.config.latents_mean):
        raise CheckpointError(
            f"{folder} was trained on another autoencoder's latents; train one with: "
            "helios train preview-decoder --codec FOLDER"
        )
    try:
        values["widths"] = tuple(values.get("widths", ()))
        decoder = PreviewDecoder(PreviewConfig(**values))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not usable: {error}") from None
    weights = open_weights(folder)
    fill(decoder, weights, str(folder), device="cpu", dtype=lambda _: torch.float32)
    return decoder
