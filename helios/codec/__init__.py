"""Pixels to latents and back."""

from helios.codec.codec import Codec, load_codec, save_codec
from helios.codec.config import AutoencoderConfig
from helios.codec.wan import Reconstruction, WanAutoencoder

__all__ = [
    "AutoencoderConfig",
    "Codec",
    "Reconstruction",
    "WanAutoencoder",
    "load_codec",
    "save_codec",
]
