"""Stage 3, tiny and full size: the published hyperparameters and those of the small model.

Both parts start from the result of the one before (``--initial``); the second needs a teacher as
well, the flat model of stage 1 (training.md, 1, 5, 6 and 10.3).
"""

from __future__ import annotations

from dataclasses import replace

from helios.data import RingConfig
from helios.history import CorruptionConfig, DropConfig
from helios.model import LoraConfig
from helios.presets import corruption, full_size, generation, models
from helios.training import (
    AdversarialConfig,
    DynamicRenoise,
    OdeConfig,
    OptimizerConfig,
    RunConfig,
    Stage1Config,
    Stage3Config,
    TrainingConfig,
)

__all__ = ["lora", "stage3", "stage3_ode", "tiny_stage3", "tiny_stage3_ode"]

COLOURS = CorruptionConfig(
    noise=0.0, scale=0.0, saturation=0.4, saturation_range=(0.3, 1.7), corrupt_anchor=False
)
"""What only the student's past suffers, so that it learns to undo it (training.md, 3.2)."""


def tiny_stage3_ode() -> RunConfig:
    """The tiny student on a teacher's trajectories: about 4 minutes on two H200, not compiled."""
    return RunConfig(
        stage=OdeConfig(
            transformer=models.tiny_transformer(),
            sections=3,
            batch=32,
            resident=True,
            generation=generation.tiny_distilled(),
            schedule=generation.tiny_pyramid_schedule("linear"),
        ),
        trainer=TrainingConfig(
            steps=1500,
            # A regression, not a game: momentum helps.
            optimizer=OptimizerConfig(
                lr=2e-4, betas=(0.9, 0.99), clip=10.0, warmup_steps=50, final_share=0.05
            ),
            compile=False,
            ema_decay=0.99,
            checkpoint_every=500,
        ),
    )


def tiny_stage3() -> RunConfig:
    """The tiny student by distribution matching: about 8 minutes on two H200.

    Compiling takes two of them: what has a gradient comes in six forms of a block for the student
    and six for the critic. What has none is recorded instead.
    """
    return RunConfig(
        stage=Stage3Config(
            transformer=models.tiny_transformer(),
            # New clips come often: the heads would soon know a few hundred of them by heart.
            data=RingConfig(group=16, first_groups=32, groups=256, refresh_every=8),
            batch=64,
            text_share=0.5,
            drop=DropConfig(all=0.0, i2v=0.1, v2v=0.2),
            corruption=corruption.flow(),
            student_corruption=COLOURS,
            critic=LoraConfig(rank=64, memory_patches="frozen"),
            critic_optimizer=_optimizer(2e-4),
            student_every=4,
            student_after=100,
            guidance=3.0,
            renoise=DynamicRenoise(fade=0.2),
            # As published, the penalty holds these heads where they begin: they never learn.
            adversarial=AdversarialConfig(
                blocks=(1, 3, 5, 7), width=96, groups=8, critic_weight=0.1, r1_weight=2.0
            ),
            generation=generation.tiny_distilled(),
            schedule=generation.tiny_pyramid_schedule("linear"),
        ),
        trainer=TrainingConfig(
            steps=2500,
            # Annealed, unlike the published run: this one is short, and its average shorter still.
            optimizer=replace(_optimizer(1e-4), final_share=0.1),
            ema_decay=0.98,
            checkpoint_every=500,
        ),
    )


def stage3_ode() -> RunConfig:
    """From Mid to few steps: the trajectories of 128 GPUs' worth of videos, 1,500 steps."""
    return RunConfig(
        stage=OdeConfig(
            transformer=models.helios_14b(),
            adapter=LoraConfig(rank=256, memory_patches="low_rank"),
            recompute=True,
            sections=3,
            batch=1,
            generation=generation.distilled(),
            schedule=replace(generation.published_schedule(distilled=True), lag=False),
            sample_clips=1,
        ),
        # All sections and stages are one graph: its activations take the room of the moments.
        trainer=replace(_trainer(seed=47, steps=1500, ema=0.99), moments_on_host=True),
    )


def stage3() -> RunConfig:
    """Distribution matching with the adversarial term, the critic beside Base: 2,250 steps."""
    return RunConfig(
        stage=Stage3Config(
            transformer=models.helios_14b(),
            adapter=LoraConfig(rank=256, memory_patches="low_rank"),
            recompute=True,
            offload=True,
            data=full_size.RING,
            sections=full_size.SECTIONS,
            first_share=1 / full_size.SECTIONS,
            wordings=1,
            batch=1,
            text_share=0.4,
            drop=full_size.DROP,
            corruption=corruption.flow(),
            student_corruption=replace(COLOURS, saturation=0.9),
            critic=LoraConfig(rank=256, memory_patches="frozen"),
            critic_optimizer=_optimizer(4e-7),
            guidance=4.0,
            adversarial=AdversarialConfig(),
            generation=generation.distilled(),
            schedule=replace(generation.published_schedule(distilled=True), lag=False),
            validation_clips=16,
            sample_clips=1,
        ),
        trainer=replace(_trainer(seed=49, steps=2250, ema=0.99), moments_on_host=True),
    )


def lora() -> RunConfig:
    """A small adapter beside any flat model of full size, for a subject or a style: 1,000 steps.

    The run leaves the adapter itself beside the model that has it merged in.
    """
    full = full_size.stage1()
    return RunConfig(
        stage=replace(_flat(full), adapter=LoraConfig(rank=32, memory_patches="frozen"), batch=1),
        trainer=replace(
            full.trainer,
            seed=0,
            steps=1000,
            optimizer=replace(full.trainer.optimizer, lr=1e-4, warmup_steps=50),
        ),
    )


def _flat(config: RunConfig) -> Stage1Config:
    stage: Stage1Config = config.stage
    return stage


def _optimizer(lr: float) -> OptimizerConfig:
    """Constant, without a first moment as for everything adversarial; clipped late."""
    return OptimizerConfig(
        lr=lr, betas=(0.0, 0.999), weight_decay=1e-3, clip=10.0, warmup_steps=0, final_share=1.0
    )


def _trainer(*, seed: int, steps: int, ema: float) -> TrainingConfig:
    return TrainingConfig(
        seed=seed,
        steps=steps,
        optimizer=_optimizer(2e-6),
        ema_decay=ema,
        checkpoint_every=250,
        sample_every=500,
    )
