"""The shape of a causal video autoencoder, in the field names of the published ``config.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from helios.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AutoencoderConfig"]

CLASS_NAME = "AutoencoderKLWan"

_PUBLISHED_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_PUBLISHED_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Widths, depths and latent statistics; the defaults are the published model's.

    Attributes:
        base_dim: encoder channels at full (patched) resolution.
        decoder_base_dim: the decoder's, or None for the same.
        z_dim: latent channels.
        dim_mult: width of each level as a multiple of the base; each level but the last halves
            rows and columns.
        num_res_blocks: residual blocks per encoder level; the decoder has one more.
        attn_scales: resolutions (1, 1/2, 1/4 ...) of the encoder that get attention after every
            residual block. Not used by the residual form.
        temperal_downsample: for each halving, whether it halves time too (published spelling).
        dropout: in residual blocks, while training.
        latents_mean: per channel, of the latents a transformer is trained on.
        latents_std: likewise; positive.
        is_residual: levels with an averaging shortcut around them (the Wan 2.2 form).
        in_channels: channels after patching: colours x patch_size².
        out_channels: likewise, of the decoder.
        patch_size: pixels a side folded into channels, or None for 1.
        scale_factor_temporal: pixel frames per latent frame; must agree with the levels.
        scale_factor_spatial: pixels per latent cell; must agree with the levels.

    Source: specification "model and sampling", sections 1.1 and 8.1.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = _PUBLISHED_MEAN
    latents_std: tuple[float, ...] = _PUBLISHED_STD
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self) -> None:
        """Refuse what cannot be built or would decode to another size than it says."""
        widths = (self.base_dim, self.decoder_width, self.z_dim, self.num_res_blocks, self.patch)
        if min(*widths, *self.dim_mult) < 1:
            raise ValueError("widths, depths and patch_size must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temperal_downsample needs {len(self.dim_mult) - 1} entries, one for each step "
                f"between the levels of dim_mult, got {len(self.temperal_downsample)}"
            )
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if len(values) != self.z_dim or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} needs {self.z_dim} finite numbers, one per channel")
        if min(self.latents_std) <= 0:
            raise ValueError("latents_std must be positive")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) < 1 or getattr(self, name) % self.patch**2:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) must be a multiple of patch_size² "
                    f"({self.patch**2})"
                )
        stated = (self.scale_factor_temporal, self.scale_factor_spatial)
        if stated != (self.temporal_ratio, self.spatial_ratio):
            raise ValueError(
                f"scale factors (time, space) are given as {stated}, but these levels and patches "
                f"make {(self.temporal_ratio, self.spatial_ratio)}"
            )

    @property
    def patch(self) -> int:
        """Pixels a side folded into channels."""
        return 1 if self.patch_size is None else self.patch_size

    @property
    def decoder_width(self) -> int:
        """Decoder channels at full (patched) resolution."""
        return self.base_dim if self.decoder_base_dim is None else self.decoder_base_dim

    @property
    def spatial_ratio(self) -> int:
        """Pixels a side of one latent cell."""
        return self.patch * int(2 ** (len(self.dim_mult) - 1))

    @property
    def temporal_ratio(self) -> int:
        """Pixel frames in every latent frame but the first, which holds one."""
        return int(2 ** sum(self.temperal_downsample))

    @property
    def colours(self) -> int:
        """Channels of a frame as given to the encoder."""
        return self.in_channels // self.patch**2

    def to_json(self) -> dict[str, Any]:
        """The published ``config.json`` of this autoencoder."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return {"_class_name": CLASS_NAME, **lists}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """The configuration in a published ``config.json``; absent fields have their default.

        Raises:
            CheckpointError: for another class, an unknown field or values that do not fit.
        """
        name = values.get("_class_name", CLASS_NAME)
        if name != CLASS_NAME:
            raise CheckpointError(f"the configuration is for {name}, expected {CLASS_NAME}")
        given = {key: value for key, value in values.items() if not key.startswith("_")}
        unknown = sorted(given.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise CheckpointError(f"unknown fields in the autoencoder's configuration: {unknown}")
        tuples: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in given.items()
        }
        try:
            return cls(**tuples)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the autoencoder's configuration is not usable: {error}"
            ) from None
