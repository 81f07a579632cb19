"""Pixels to latents and back."""

from helios.codec.codec import Codec, check_codec, load_codec, save_codec
from helios.codec.config import AutoencoderConfig
from helios.codec.preview import (
    PreviewCodec,
    PreviewConfig,
    PreviewDecoder,
    load_preview,
    save_preview,
)
from helios.codec.wan import Reconstruction, WanAutoencoder

__all__ = [
    "AutoencoderConfig",
    "Codec",
    "PreviewCodec",
    "PreviewConfig",
    "PreviewDecoder",
    "Reconstruction",
    "WanAutoencoder",
    "check_codec",
    "load_codec",
    "load_preview",
    "save_codec",
    "save_preview",
]
