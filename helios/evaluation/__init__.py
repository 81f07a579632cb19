"""Scores: metrics of frames, and what a model makes of captions whose scenes are known."""

from helios.evaluation.accuracy import Rate, assess, tables_markdown, tabulate, wilson_interval
from helios.evaluation.caption_suite import PARTS, AccuracyConfig, Report, continuation, measure
from helios.evaluation.generation import generate_batch, untrained
from helios.evaluation.metrics import (
    JUDGE_FOLDER,
    SceneJudge,
    load_judge,
    moving_psnr,
    psnr,
    save_judge,
)
from helios.evaluation.reading import ObjectReading, Reading, reading_of, verdicts

__all__ = [
    "JUDGE_FOLDER",
    "PARTS",
    "AccuracyConfig",
    "ObjectReading",
    "Rate",
    "Reading",
    "Report",
    "SceneJudge",
    "assess",
    "continuation",
    "generate_batch",
    "load_judge",
    "measure",
    "moving_psnr",
    "psnr",
    "reading_of",
    "save_judge",
    "tables_markdown",
    "tabulate",
    "untrained",
    "verdicts",
    "wilson_interval",
]
