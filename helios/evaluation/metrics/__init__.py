"""Metrics: functions of frames. Networks they need are loaded once and passed in."""

from helios.evaluation.metrics.judge_file import JUDGE_FOLDER, load_judge, save_judge
from helios.evaluation.metrics.pixel import (
    brightness,
    moving_pixels,
    moving_psnr,
    psnr,
    saturation,
    sharpness,
)
from helios.evaluation.metrics.scene_judge import JudgeConfig, Opinion, SceneJudge

__all__ = [
    "JUDGE_FOLDER",
    "JudgeConfig",
    "Opinion",
    "SceneJudge",
    "brightness",
    "load_judge",
    "moving_pixels",
    "moving_psnr",
    "psnr",
    "saturation",
    "save_judge",
    "sharpness",
]
