"""Small random autoencoders, ours and the oracle's, with the same parameters."""

import random

import torch
from diffusers import AutoencoderKLWan

from helios.codec import AutoencoderConfig, WanAutoencoder

Pair = tuple[WanAutoencoder, AutoencoderKLWan]


def draw_config(seed: int) -> AutoencoderConfig:
    """A random small configuration; over a dozen seeds every field takes every kind of value.

    Not narrower than eight channels: the norm of very few can come close to zero, and dividing by
    it magnifies float32 rounding, the oracle's as well as ours.
    """
    rng = random.Random(seed)
    residual = seed % 3 == 2
    levels = rng.choice([2, 3, 4])
    if residual:
        # The averaging shortcuts need widths that divide; the last level has no room to change.
        dim_mult = tuple([1, 2, 2, 4, 4][:levels] if rng.random() < 0.5 else [1, 1, 2, 2][:levels])
        dim_mult = (*dim_mult[:-1], dim_mult[-2])
    else:
        dim_mult = tuple(rng.choice([1, 2, 3]) for _ in range(levels))
    halvings = [rng.random() < 0.6 for _ in range(levels - 1)]
    while sum(halvings) > 2:
        halvings[halvings.index(True)] = False
    patch = rng.choice([None, 1, 2, 2, 4])
    folded = 3 * (patch or 1) ** 2
    z_dim = rng.choice([4, 7, 16])
    return AutoencoderConfig(
        base_dim=rng.choice([8, 12, 16]),
        decoder_base_dim=rng.choice([None, 8, 10]),
        z_dim=z_dim,
        dim_mult=dim_mult,
        num_res_blocks=rng.choice([1, 2]),
        attn_scales=() if residual else rng.choice([(), (1.0,), (0.5,), (1.0, 0.25)]),
        temperal_downsample=tuple(halvings),
        latents_mean=tuple(rng.uniform(-1, 1) for _ in range(z_dim)),
        latents_std=tuple(rng.uniform(0.5, 3) for _ in range(z_dim)),
        is_residual=residual,
        in_channels=folded,
        out_channels=folded,
        patch_size=patch,
        scale_factor_temporal=2 ** sum(halvings),
        scale_factor_spatial=(patch or 1) * 2 ** (levels - 1),
    )


def perturb(network: torch.nn.Module, seed: int) -> None:
    """Move every parameter, gains and biases too, off its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.1 * noise * max(float(parameter.abs().mean()), 0.05)


def make_oracle(config: AutoencoderConfig) -> AutoencoderKLWan:
    """diffusers' autoencoder of ``config``, freshly initialised."""
    fields = {key: value for key, value in config.to_json().items() if key[0] != "_"}
    return AutoencoderKLWan(**fields).eval()


def make_pair(config: AutoencoderConfig, seed: int = 0) -> Pair:
    """Ours and diffusers', with equal random parameters."""
    torch.manual_seed(seed)
    theirs = make_oracle(config)
    perturb(theirs, seed)
    ours = WanAutoencoder(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


TINY = AutoencoderConfig(
    base_dim=8,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temperal_downsample=(True, True),
    in_channels=12,
    out_channels=12,
    patch_size=2,
)
"""The shipped tiny autoencoder at a quarter of its width."""
