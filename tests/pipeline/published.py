"""Random checkpoints in the published layout, written by diffusers, and how diffusers runs them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from transformers import UMT5Config, UMT5EncoderModel

from helios.conditioning import word_tokenizer
from helios.diffusion import pyramid

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = ("a an red green blue ball cube cone rolls bounces spins on over grass sand snow and",)
TEXT_LENGTH = 16
PYRAMID = {"stages": 3, "use_dynamic_shifting": True}
SCHEDULERS: dict[str, Any] = {
    "base": lambda: diffusers.HeliosScheduler(
        stages=1, stage_range=[0, 1], use_dynamic_shifting=True
    ),
    "base-euler": lambda: diffusers.HeliosScheduler(
        stages=1, stage_range=[0, 1], use_dynamic_shifting=True, scheduler_type="euler"
    ),
    "mid": lambda: diffusers.HeliosScheduler(**PYRAMID),
    "mid-cfg": lambda: diffusers.HeliosScheduler(**PYRAMID),
    "mid-euler": lambda: diffusers.HeliosScheduler(**PYRAMID, scheduler_type="euler"),
    "distilled": lambda: diffusers.HeliosDMDScheduler(**PYRAMID, time_shift_type="linear"),
}
"""Every kind of checkpoint: the three published ones, and their solvers and guidance crossed."""


def random_parts(seed: int = 0, *, patched: bool = False) -> dict[str, Any]:
    """Transformer, autoencoder, text encoder and tokenizer with random weights.

    ``patched``: the autoencoder folds 2 x 2 pixels instead of halving three times: much quicker.
    """
    torch.manual_seed(seed)
    transformer = diffusers.HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        rope_dim=(4, 6, 6),
        text_dim=24,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
    )
    levels: dict[str, Any] = {"dim_mult": [1] * 4, "temperal_downsample": [False, True, True]}
    if patched:
        levels = {"dim_mult": [1] * 3, "temperal_downsample": [True, True], "patch_size": 2}
        levels |= {"in_channels": 12, "out_channels": 12}
    vae = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1, **levels)
    tokenizer = word_tokenizer(WORDS, max_length=TEXT_LENGTH)
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        )
    )
    with torch.no_grad():
        # Norms, tables and biases start at 0 or 1, where a mistake in them would not show.
        for module in (transformer, vae, text_encoder):
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return {
        "transformer": transformer.eval(),
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
    }


def write_checkpoint(kind: str, folder: Path, parts: dict[str, Any]) -> Path:
    """Save ``parts`` as a checkpoint of ``kind``, by diffusers alone."""
    scheduler = SCHEDULERS[kind]()
    if kind.startswith("base"):
        pipe = diffusers.HeliosPipeline(**parts, scheduler=scheduler)
    else:
        pipe = diffusers.HeliosPyramidPipeline(
            **parts,
            scheduler=scheduler,
            is_cfg_zero_star=kind in ("mid", "mid-euler"),
            is_distilled=kind == "distilled",
        )
    pipe.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def lent_factor(gamma: float = 1 / 3) -> Iterator[None]:
    """Let diffusers factor the covariance of its block noise where it cannot.

    It is singular at the published gamma, and whether a float32 Cholesky factorisation succeeds
    depends on the machine's linear algebra; where it does, it gives this factor.
    """
    own = torch.linalg.cholesky
    torch.linalg.cholesky = lambda _: pyramid._block_factor(gamma)
    try:
        yield
    finally:
        torch.linalg.cholesky = own


def published_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Diffusers' pipeline; its autoencoder in float32, as in the published scripts."""
    index = (folder / "model_index.json").read_text()
    flat = '"HeliosPipeline"' in index
    kind = diffusers.HeliosPipeline if flat else diffusers.HeliosPyramidPipeline
    vae = diffusers.AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32)
    pipe = kind.from_pretrained(folder, vae=vae, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe
