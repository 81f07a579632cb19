"""What a model makes of captions, how it drifts, how fast it is, and how all that is shown."""

from helios.evaluation.accuracy import Rate, assess, tables_markdown, tabulate, wilson_interval
from helios.evaluation.caption_suite import PARTS, AccuracyConfig, Report, continuation, measure
from helios.evaluation.generation import generate_batch, stream_batch, untrained
from helios.evaluation.heliosbench import TIERS, Bench, takes_of
from helios.evaluation.metrics import (
    JUDGE_FOLDER,
    SceneJudge,
    load_judge,
    moving_psnr,
    psnr,
    save_judge,
)
from helios.evaluation.metrics.networks import Networks, load_networks
from helios.evaluation.pages.page import write_plots, write_report
from helios.evaluation.pages.tables import markdown
from helios.evaluation.prompts import BenchPrompt, read_prompts, scene_prompts
from helios.evaluation.reading import ObjectReading, Reading, reading_of, verdicts
from helios.evaluation.sources import FolderSource, ModelSource, TruthSource, fingerprint
from helios.evaluation.speed import Speed, measure_speed
from helios.evaluation.store import Record, Results
from helios.evaluation.suites import (
    ArmSpec,
    Evaluation,
    SuiteConfig,
    evaluate_arms,
    parse_steps,
)
from helios.evaluation.throughput.arms import own_arms
from helios.evaluation.throughput.bench import BenchConfig, bench
from helios.evaluation.throughput.clock import timed
from helios.evaluation.throughput.engine import Arm, PipelineArm, Visit, visit_of
from helios.evaluation.throughput.report import hardware, report
from helios.evaluation.throughput.subject import Subject, random_codec, random_transformer

__all__ = [
    "JUDGE_FOLDER",
    "PARTS",
    "TIERS",
    "AccuracyConfig",
    "Arm",
    "ArmSpec",
    "Bench",
    "BenchConfig",
    "BenchPrompt",
    "Evaluation",
    "FolderSource",
    "ModelSource",
    "Networks",
    "ObjectReading",
    "PipelineArm",
    "Rate",
    "Reading",
    "Record",
    "Report",
    "Results",
    "SceneJudge",
    "Speed",
    "Subject",
    "SuiteConfig",
    "TruthSource",
    "Visit",
    "assess",
    "bench",
    "continuation",
    "evaluate_arms",
    "fingerprint",
    "generate_batch",
    "hardware",
    "load_judge",
    "load_networks",
    "markdown",
    "measure",
    "measure_speed",
    "moving_psnr",
    "own_arms",
    "parse_steps",
    "psnr",
    "random_codec",
    "random_transformer",
    "read_prompts",
    "reading_of",
    "report",
    "save_judge",
    "scene_prompts",
    "stream_batch",
    "tables_markdown",
    "tabulate",
    "takes_of",
    "timed",
    "untrained",
    "verdicts",
    "visit_of",
    "wilson_interval",
    "write_plots",
    "write_report",
]
