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
from helios.evaluation.arms import own_arms
from helios.evaluation.subject import Subject, random_codec, random_transformer
from helios.evaluation.throughput import (
    Arm,
    BenchConfig,
    PipelineArm,
    Visit,
    bench,
    timed,
    visit_of,
)
from helios.evaluation.throughput_report import hardware, report

__all__ = [
    "JUDGE_FOLDER",
    "PARTS",
    "AccuracyConfig",
    "Arm",
    "BenchConfig",
    "ObjectReading",
    "PipelineArm",
    "Rate",
    "Reading",
    "Report",
    "SceneJudge",
    "Subject",
    "Visit",
    "assess",
    "bench",
    "continuation",
    "generate_batch",
    "hardware",
    "load_judge",
    "measure",
    "moving_psnr",
    "own_arms",
    "psnr",
    "random_codec",
    "random_transformer",
    "reading_of",
    "report",
    "save_judge",
    "tables_markdown",
    "tabulate",
    "timed",
    "untrained",
    "verdicts",
    "visit_of",
    "wilson_interval",
]
