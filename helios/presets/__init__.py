"""Named configurations, as functions."""

from helios.presets import generation, models
from helios.presets.overrides import override
from helios.presets.training import (
    TRAINING_PRESETS,
    tiny_codec,
    tiny_codec_smooth,
    tiny_stage1,
    training_preset,
)

__all__ = [
    "TRAINING_PRESETS",
    "generation",
    "models",
    "override",
    "tiny_codec",
    "tiny_codec_smooth",
    "tiny_stage1",
    "training_preset",
]
