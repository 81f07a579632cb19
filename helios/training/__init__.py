"""Stages of learning and the one trainer that runs them."""

from helios.training.adversarial import AdversarialConfig
from helios.training.codec_stage import CodecStage, CodecStageConfig
from helios.training.config import RunConfig, TrainingConfig, to_json
from helios.training.dmd import DynamicRenoise
from helios.training.examples import Example, cut_example
from helios.training.flow_stage import FlowConfig, FlowStage
from helios.training.memory import TrainingMemory, training_memory
from helios.training.networks import TextSize, find_codec, find_model
from helios.training.ode import OdeConfig, OdeStage
from helios.training.optim import OptimizerConfig, learning_rate
from helios.training.preview_stage import PreviewStage, PreviewStageConfig
from helios.training.run import train
from helios.training.stage import Stage, StageConfig
from helios.training.stage1 import Emphasis, NoiseLaw, Stage1, Stage1Config
from helios.training.stage2 import Stage2, Stage2Config
from helios.training.stage3 import Stage3
from helios.training.stage3_config import Stage3Config
from helios.training.trainer import Trainer

__all__ = [
    "AdversarialConfig",
    "CodecStage",
    "CodecStageConfig",
    "DynamicRenoise",
    "Emphasis",
    "Example",
    "FlowConfig",
    "FlowStage",
    "NoiseLaw",
    "OdeConfig",
    "OdeStage",
    "OptimizerConfig",
    "PreviewStage",
    "PreviewStageConfig",
    "RunConfig",
    "Stage",
    "Stage1",
    "Stage1Config",
    "Stage2",
    "Stage2Config",
    "Stage3",
    "Stage3Config",
    "StageConfig",
    "TextSize",
    "Trainer",
    "TrainingConfig",
    "TrainingMemory",
    "cut_example",
    "find_codec",
    "find_model",
    "learning_rate",
    "to_json",
    "train",
    "training_memory",
]
