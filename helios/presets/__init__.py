"""Named configurations, as functions."""

from helios.presets import corruption, generation, models
from helios.presets.ablations import ABLATIONS, ablation
from helios.presets.overrides import override
from helios.presets.training import (
    TRAINING_PRESETS,
    tiny_codec,
    tiny_codec_smooth,
    tiny_stage1,
    tiny_stage1_post,
    tiny_stage2,
    training_preset,
)

__all__ = [
    "ABLATIONS",
    "TRAINING_PRESETS",
    "ablation",
    "corruption",
    "generation",
    "models",
    "override",
    "tiny_codec",
    "tiny_codec_smooth",
    "tiny_stage1",
    "tiny_stage1_post",
    "tiny_stage2",
    "training_preset",
]
