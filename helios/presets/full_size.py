"""Stages 1 and 2 of the published model: the hyperparameters of its two phases (training.md, 1).

Every phase learns a fresh adapter beside the merged result of the one before, given by
``--initial``. The published runs used 64 GPUs, hence batches of 128 clips in stage 1 and 64 in
stage 2, and clips of real video; the procedural scenes stand in for them at the same size.
"""

from __future__ import annotations

import math
from dataclasses import replace

from helios.data import RingConfig
from helios.diffusion import ScheduleConfig, ShiftLaw
from helios.history import DropConfig
from helios.model import LoraConfig
from helios.presets import corruption, generation, models
from helios.training import (
    NoiseLaw,
    OptimizerConfig,
    RunConfig,
    Stage1Config,
    Stage2Config,
    TrainingConfig,
)

__all__ = ["stage1", "stage1_post", "stage2", "stage2_post"]

SECTIONS = 5
RING = RingConfig(height=384, width=640, group=1, first_groups=8, groups=64, refresh_every=8)
DROP = DropConfig(all=0.4, i2v=0.0, v2v=0.4)


def stage1() -> RunConfig:
    """From the bidirectional Wan2.1-T2V-14B to continuing a past: the fast phase, 5,500 steps."""
    return RunConfig(
        stage=Stage1Config(
            transformer=models.helios_14b(),
            adapter=LoraConfig(rank=128, patch_embedding="low_rank", memory_patches="full"),
            text_learns=False,
            recompute=True,
            data=RING,
            sections=SECTIONS,
            first_share=1 / SECTIONS,
            wordings=1,
            batch=2,
            noise=NoiseLaw(mean=0.0, std=1.0, uniform_share=0.0),
            drop=DROP,
            corruption=corruption.flow(),
            caption_dropout=0.0,
            generation=generation.base(),
            schedule=ScheduleConfig(stages=1, dynamic=_shift()),
            validation_clips=16,
            sample_clips=1,
        ),
        trainer=_trainer(seed=43, steps=5_500, lr=5e-5),
    )


def stage1_post() -> RunConfig:
    """The slow phase, 7,500 steps: its result is Base."""
    return replace(stage1(), trainer=_trainer(seed=44, steps=7_500, lr=3e-5))


def stage2() -> RunConfig:
    """From Base to three scales, the middle one twice: the fast phase, 16,000 steps."""
    return RunConfig(
        stage=Stage2Config(
            transformer=models.helios_14b(),
            adapter=LoraConfig(rank=256, patch_embedding="frozen", memory_patches="frozen"),
            scales=(1, 2, 1),
            recompute=True,
            data=RING,
            sections=SECTIONS,
            first_share=1 / SECTIONS,
            wordings=1,
            batch=1,
            drop=DROP,
            corruption=corruption.flow(),
            caption_dropout=0.0,
            generation=generation.mid(),
            schedule=ScheduleConfig(stages=3, dynamic=_shift()),
            validation_clips=16,
            sample_clips=1,
        ),
        trainer=_trainer(seed=45, steps=16_000, lr=1e-4, warmup=1000),
    )


def stage2_post() -> RunConfig:
    """Every scale once: the slow phase, 20,000 steps; its result is Mid."""
    fast = stage2().stage
    adapter = LoraConfig(rank=256, patch_embedding="low_rank", memory_patches="low_rank")
    return RunConfig(
        stage=replace(fast, adapter=adapter, scales=(1, 1, 1)),
        trainer=_trainer(seed=46, steps=20_000, lr=3e-5, warmup=500),
    )


def _shift() -> ShiftLaw:
    """By the tokens of the scale at hand, bounded as in training (training.md, 1.1)."""
    return ShiftLaw(kind="exponential", max_mu=math.log(7))


def _trainer(*, seed: int, steps: int, lr: float, warmup: int = 0) -> TrainingConfig:
    """A constant learning rate after warm-up, no average of the parameters."""
    return TrainingConfig(
        seed=seed,
        steps=steps,
        optimizer=OptimizerConfig(
            lr=lr,
            betas=(0.9, 0.999),
            weight_decay=1e-4,
            clip=1.0,
            warmup_steps=warmup,
            final_share=1.0,
        ),
        ema_decay=0.0,
        checkpoint_every=500,
        sample_every=500,
    )
