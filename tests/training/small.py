"""The real stages, as small as they can be: 32x48 pixels, some thousand parameters."""

from helios.codec import AutoencoderConfig
from helios.data import RingConfig
from helios.diffusion import CFG, Flat, ScheduleConfig
from helios.model import TransformerConfig
from helios.pipeline import GenerationConfig
from helios.training import (
    CodecStageConfig,
    OptimizerConfig,
    RunConfig,
    Stage1Config,
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
