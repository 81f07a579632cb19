"""Training runs by name: complete, frozen, and changed only by ``--set``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from helios.codec import PreviewConfig
from helios.data import RingConfig
from helios.presets import distillation, full_size, generation, models
from helios.training import (
    CodecStageConfig,
    Emphasis,
    OptimizerConfig,
    PreviewStageConfig,
    RunConfig,
    Stage1Config,
    Stage2Config,
    TrainingConfig,
)

__all__ = [
    "TRAINING_PRESETS",
    "preview_decoder",
    "tiny_codec",
    "tiny_codec_smooth",
    "tiny_stage1",
    "tiny_stage1_post",
    "tiny_stage2",
    "training_preset",
]

BUNDLED_CODEC = Path(__file__).parents[1] / "assets" / "tiny" / "vae"


def tiny_codec() -> RunConfig:
    """The tiny autoencoder from scratch: about 15 minutes on one H200 (tiny.md, section 3)."""
    return RunConfig(
        stage=CodecStageConfig(
            autoencoder=models.tiny_autoencoder(),
            data=RingConfig(group=32, first_groups=16, groups=64, refresh_every=16),
        ),
        trainer=TrainingConfig(
            steps=18_000,
            optimizer=OptimizerConfig(lr=1.2e-3, warmup_steps=100, final_share=0.0),
            ema_decay=0.999,
            checkpoint_every=2000,
        ),
    )


def tiny_codec_smooth() -> RunConfig:
    """The bundled tiny autoencoder, or another, made easier to model: 5 minutes on one H200.

    What a small transformer cannot predict is taken out of the latents: a heavier divergence, and
    agreement between sizes. It cost no decibel (docs/results.md).
    """
    fresh = tiny_codec()
    return RunConfig(
        stage=replace(
            fresh.stage,
            initial=BUNDLED_CODEC,
            data=RingConfig(group=32, first_groups=8, groups=64, refresh_every=24),
            kl_weight=1e-2,
            scale_weight=1.0,
        ),
        trainer=TrainingConfig(
            steps=3800,
            optimizer=OptimizerConfig(lr=6e-4, warmup_steps=100, final_share=0.0),
            ema_decay=0.998,
            checkpoint_every=0,
        ),
    )


def preview_decoder() -> RunConfig:
    """A preview decoder for the bundled autoencoder, or that of ``--codec``: minutes on a CPU."""
    return RunConfig(
        stage=PreviewStageConfig(
            preview=PreviewConfig(),
            codec=BUNDLED_CODEC,
            data=RingConfig(group=8, first_groups=4, groups=24, refresh_every=48),
        ),
        trainer=TrainingConfig(
            steps=2000,
            optimizer=OptimizerConfig(lr=3e-3, warmup_steps=50, final_share=0.0),
            ema_decay=0.99,
            checkpoint_every=0,
            final_checkpoint=False,
        ),
    )


def tiny_stage1() -> RunConfig:
    """The tiny transformer and its text encoder: half an hour on one H200 (tiny.md, 4)."""
    return RunConfig(
        stage=Stage1Config(
            transformer=models.tiny_transformer(),
            text=models.tiny_text(),
            data=RingConfig(group=16, first_groups=16, groups=256, refresh_every=16),
            emphasis=Emphasis(moving=3.0),
            generation=generation.tiny(),
            schedule=generation.tiny_schedule(),
        ),
        trainer=TrainingConfig(
            steps=30_000,
            optimizer=OptimizerConfig(lr=8e-4, warmup_steps=150, final_share=0.02),
            ema_decay=0.999,
            checkpoint_every=2000,
        ),
    )


def tiny_stage1_post() -> RunConfig:
    """The slow phase of stage 1, from the model of ``--initial``: 5 minutes on one H200."""
    fast = tiny_stage1()
    return RunConfig(
        stage=replace(fast.stage, text_learns=False),
        trainer=replace(
            fast.trainer,
            steps=4000,
            optimizer=OptimizerConfig(lr=1e-4, warmup_steps=100, final_share=0.02),
        ),
    )


def tiny_stage2() -> RunConfig:
    """The tiny model on three scales: about 6 minutes on two H200 (training.md, 4 and 10.3).

    It starts from the flat model of ``--initial``, whose text encoder stays.
    """
    return RunConfig(
        stage=Stage2Config(
            transformer=models.tiny_transformer(),
            text=models.tiny_text(),
            data=RingConfig(group=16, first_groups=16, groups=256, refresh_every=16),
            batch=96,
            generation=generation.tiny_mid(),
            schedule=generation.tiny_pyramid_schedule(),
        ),
        trainer=TrainingConfig(
            steps=4500,
            optimizer=OptimizerConfig(lr=4e-4, warmup_steps=150, final_share=0.02),
            ema_decay=0.999,
            checkpoint_every=1500,
        ),
    )


TRAINING_PRESETS: dict[str, Callable[[], RunConfig]] = {
    "tiny-codec": tiny_codec,
    "tiny-codec-smooth": tiny_codec_smooth,
    "preview-decoder": preview_decoder,
    "tiny-stage1": tiny_stage1,
    "tiny-stage1-post": tiny_stage1_post,
    "tiny-stage2": tiny_stage2,
    "tiny-stage3-ode": distillation.tiny_stage3_ode,
    "tiny-stage3": distillation.tiny_stage3,
    "stage1": full_size.stage1,
    "stage1-post": full_size.stage1_post,
    "stage2": full_size.stage2,
    "stage2-post": full_size.stage2_post,
    "stage3-ode": distillation.stage3_ode,
    "stage3": distillation.stage3,
    "lora": distillation.lora,
}


def training_preset(name: str) -> RunConfig:
    """The preset that users call ``name``.

    Raises:
        ValueError: for an unknown name, with what there is.
    """
    if name not in TRAINING_PRESETS:
        close = difflib.get_close_matches(name, TRAINING_PRESETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown preset {name!r}: known are {', '.join(TRAINING_PRESETS)}{hint}")
    return TRAINING_PRESETS[name]()
