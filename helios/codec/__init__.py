"""Pixels to latents and back."""

from helios.codec.codec import Codec, check_codec, load_codec, save_codec
from helios.codec.config import AutoencoderConfig
from helios.codec.wan import Reconstruction, WanAutoencoder

__all__ = [
    "AutoencoderConfig",
    "Codec",
    "Reconstruction",
    "WanAutoencoder",
    "check_codec",
    "load_codec",
    "save_codec",
]
