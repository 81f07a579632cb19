"""The real stages, as small as they can be: 32x48 pixels, some thousand parameters."""

from dataclasses import replace

from helios.codec import AutoencoderConfig
from helios.data import RingConfig
from helios.diffusion import CFG, Flat, Pyramid, ScheduleConfig, ShiftLaw
from helios.model import LoraConfig, TransformerConfig
from helios.pipeline import GenerationConfig
from helios.training import (
    AdversarialConfig,
    CodecStageConfig,
    OdeConfig,
    OptimizerConfig,
    RunConfig,
    Stage1Config,
    Stage3Config,
    TextSize,
    TrainingConfig,
)

RING = RingConfig(
    height=32, width=48, supersampling=1, group=2, first_groups=2, groups=3, refresh_every=2
)


def trainer_config(**changes):
    values = {
        "steps": 6,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 3,
        "optimizer": OptimizerConfig(lr=3e-3, warmup_steps=3),
    }
    return TrainingConfig(**{**values, **changes})


def codec_config(**changes):
    autoencoder = AutoencoderConfig(
        base_dim=8,
        dim_mult=(1, 1, 1),
        num_res_blocks=1,
        temperal_downsample=(True, True),
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=(0.0,) * 16,
        latents_std=(1.0,) * 16,
    )
    stage = CodecStageConfig(
        autoencoder=autoencoder,
        data=RING,
        short_batch=2,
        batch=1,
        short_frames=5,
        statistics_clips=2,
        validation_clips=2,
    )
    return RunConfig(stage=stage, trainer=trainer_config(**changes))


def stage1_config(codec, **changes):
    transformer = TransformerConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        rope_dim=(4, 6, 6),
        text_dim=24,
        freq_dim=32,
        ffn_dim=48,
        num_layers=1,
    )
    generation = GenerationConfig(height=32, width=48, plan=Flat(steps=1), guidance=CFG(2.0))
    stage = Stage1Config(
        transformer=transformer,
        text=TextSize(layers=1, heads=2, head_dim=8, ffn=32, length=48),
        codec=codec,
        data=RING,
        sections=2,
        wordings=2,
        batch=8,
        generation=generation,
        schedule=ScheduleConfig(stages=1, shift=2.0),
        validation_clips=2,
        sample_clips=1,
        sample_chunks=1,
    )
    return RunConfig(stage=stage, trainer=trainer_config(**changes))


SQUARE = replace(RING, height=64, width=64, groups=2, refresh_every=0)
"""The smallest picture with three scales."""
LINEAR = ScheduleConfig(dynamic=ShiftLaw(kind="linear", base_tokens=8, max_tokens=160))
DISTILLED = GenerationConfig(
    height=64,
    width=64,
    plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
    guidance=None,
    distilled=True,
)


def distillable(codec):
    """A stage whose result is a model of three scales."""
    plan = Pyramid(steps=(2, 2, 2))
    return replace(
        stage1_config(codec).stage,
        data=SQUARE,
        generation=GenerationConfig(height=64, width=64, plan=plan, guidance=CFG(2.0)),
        schedule=replace(LINEAR, dynamic=replace(LINEAR.dynamic, kind="exponential")),
    )


def ode_config(models, trajectories, **changes):
    stage = OdeConfig(
        transformer=stage1_config(None).stage.transformer,
        initial=models / "mid",
        trajectories=trajectories,
        sections=2,
        batch=2,
        generation=DISTILLED,
        schedule=LINEAR,
        sample_clips=1,
        sample_chunks=1,
    )
    return RunConfig(stage=stage, trainer=trainer_config(**changes))


def stage3_config(models, **changes):
    stage = Stage3Config(
        transformer=stage1_config(None).stage.transformer,
        initial=models / "mid",
        teacher=models / "base",
        data=SQUARE,
        sections=2,
        wordings=2,
        batch=4,
        text_share=0.5,
        critic=LoraConfig(rank=4, memory_patches="frozen"),
        critic_optimizer=OptimizerConfig(lr=3e-3, betas=(0.0, 0.999), warmup_steps=0),
        student_every=2,
        guidance=2.0,
        adversarial=AdversarialConfig(blocks=(0,), width=8, groups=2),
        generation=DISTILLED,
        schedule=LINEAR,
        validation_clips=2,
        sample_clips=1,
        sample_chunks=1,
    )
    return RunConfig(stage=stage, trainer=trainer_config(**changes))
