"""Networks by name: every number of a model in one place."""

from __future__ import annotations

from helios.codec import AutoencoderConfig
from helios.model import TransformerConfig
from helios.training import TextSize

__all__ = ["helios_14b", "tiny_autoencoder", "tiny_text", "tiny_transformer", "wan_autoencoder"]

LATENT_CHANNELS = 16


def tiny_transformer() -> TransformerConfig:
    """The bundled model: 9.25 M parameters (tiny.md, section 4)."""
    return TransformerConfig(
        num_attention_heads=4,
        attention_head_dim=64,
        num_layers=8,
        ffn_dim=768,
        rope_dim=(24, 20, 20),
        text_dim=160,
    )


def tiny_text() -> TextSize:
    """Its text encoder: UMT5 with two layers, 0.52 M parameters."""
    return TextSize(layers=2, heads=4, head_dim=40, ffn=320, length=64)


def tiny_autoencoder() -> AutoencoderConfig:
    """Its autoencoder: 2.56 M parameters, 8 x 8 x 4 pixels per latent (tiny.md, section 3)."""
    return AutoencoderConfig(
        base_dim=32,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temperal_downsample=(True, True),
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=(0.0,) * LATENT_CHANNELS,
        latents_std=(1.0,) * LATENT_CHANNELS,
    )


def helios_14b() -> TransformerConfig:
    """The published transformer: 14.3 B parameters."""
    return TransformerConfig()


def wan_autoencoder() -> AutoencoderConfig:
    """The published autoencoder."""
    return AutoencoderConfig()
