"""What is measured together: arms, prompts and lengths in, one evaluation out.

An arm is a model with its settings, or several trainings of it. Beside the models stand renders of
the same scenes, where there are scenes: what a perfect model would make, and what every metric says
of it. The work can be dealt out to several processes that share a folder; whoever finds all records
there writes the report.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helios.errors import CheckpointError, InputError
from helios.evaluation.clips import device_name
from helios.evaluation.heliosbench import Bench, takes_of
from helios.evaluation.prompts import BenchPrompt
from helios.evaluation.sources import (
    CodecSource,
    FolderSource,
    ModelSource,
    Source,
    Take,
    TruthSource,
)
from helios.evaluation.speed import measure_speed
from helios.evaluation.store import Record
from helios.evaluation.summary import Arm, compare, grades, summary
from helios.pipeline import load
from helios.storage import read_json, write_json

if TYPE_CHECKING:
    from helios.pipeline import Pipeline

__all__ = ["ArmSpec", "Evaluation", "SuiteConfig", "evaluate_arms", "parse_steps"]

REFERENCE = "renders"
TRUTHS = ("renders", "codec")
"""Kinds of sources that are no model's."""


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """One model to be measured, as asked for.

    Attributes:
        name: of its column.
        models: folders or names; several are trainings of the same thing with other seeds.
        steps: denoising steps; the model's own if not given.
        guidance: guidance scale; likewise.
        prompts: only the first so many prompts.
        repetitions: videos per prompt, if another number than everybody's.
    """

    name: str
    models: tuple[str, ...]
    steps: int | tuple[int, ...] | None = None
    guidance: float | None = None
    prompts: int | None = None
    repetitions: int | None = None

    def __post_init__(self) -> None:
        """Refuse arms without a name or a model, and numbers below 1."""
        if not self.name or not self.models or not all(self.models):
            raise ValueError(f"an arm is NAME=MODEL, got {self.name!r} and {self.models}")
        if self.name.startswith(REFERENCE) or self.name == "other renders":
            raise ValueError(f"no arm may be called {self.name!r}: the renders are")
        for field_name in ("prompts", "repetitions"):
            value = getattr(self, field_name)
            if value is not None and value < 1:
                raise ValueError(f"arm {self.name}: {field_name} must be at least 1, got {value}")

    @property
    def is_videos(self) -> bool:
        """Whether this is a folder of finished videos."""
        return all(_holds_videos(Path(model)) for model in self.models)

    def with_settings(self, steps: int | tuple[int, ...] | None, guidance: float | None) -> ArmSpec:
        """The same arm with these where they are given."""
        return replace(
            self,
            steps=self.steps if steps is None else steps,
            guidance=self.guidance if guidance is None else guidance,
        )

    @classmethod
    def parse(cls, text: str) -> ArmSpec:
        """``[NAME=]MODEL[,MODEL…][@steps=2,2,2][@guidance=3][@prompts=16][@seeds=2]``.

        Raises:
            ValueError: for anything else.
        """
        # A hub id may be pinned with "@revision", so only what looks like an option is one.
        pieces = text.split("@")
        head = [pieces[0]]
        options: dict[str, str] = {}
        for piece in pieces[1:]:
            name, sign, value = piece.partition("=")
            if not sign:
                head.append(piece)
            elif name in ("steps", "guidance", "prompts", "seeds"):
                options[name] = value
            else:
                raise ValueError(
                    f"arm {text!r}: unknown option {name!r}; known are steps, guidance, prompts, "
                    "seeds"
                )
        name, sign, models = "@".join(head).partition("=")
        if not sign:
            name, models = Path(name).name or name, name
        try:
            return cls(
                name=name,
                models=tuple(models.split(",")),
                steps=parse_steps(options["steps"]) if "steps" in options else None,
                guidance=float(options["guidance"]) if "guidance" in options else None,
                prompts=int(options["prompts"]) if "prompts" in options else None,
                repetitions=int(options["seeds"]) if "seeds" in options else None,
            )
        except ValueError as error:
            raise ValueError(f"arm {text!r}: {error}") from None


def parse_steps(text: str) -> int | tuple[int, ...]:
    """``25``, or one number per scale: ``2,2,2``.

    Raises:
        ValueError: for anything else.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"steps must be like 25 or 2,2,2, got {text!r}") from None
    return numbers[0] if len(numbers) == 1 else numbers


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """How much of everything.

    Attributes:
        suite: its name, for the report.
        seed: of noise; the prompts have their own.
        repetitions: videos per prompt.
        renders: whether the scenes themselves are measured, as reference.
        ceilings: whether also what a perfect model would get: renders of the same words with other
            places and speeds, and the renders through the first model's autoencoder.
        speed_chunks: chunks of the stream against the clock; 0: none.
        shard: this process's part of the work, and of how many.
        device: where everything runs.
        dtype: of the models.
    """

    suite: str
    seed: int = 0
    repetitions: int = 1
    renders: bool = True
    ceilings: bool = False
    speed_chunks: int = 0
    shard: tuple[int, int] = (0, 1)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Refuse shards that do not exist."""
        part, count = self.shard
        if not 0 <= part < count:
            raise ValueError(f"shard must be like 0/2, the first of two, got {part}/{count}")
        if self.repetitions < 1:
            raise ValueError(f"seeds must be at least 1, got {self.repetitions}")
        if self.speed_chunks == 1 or self.speed_chunks < 0:
            raise ValueError("speed needs 2 chunks or more, the first to warm up; 0 for none")


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        values: plain values, ready for JSON.
        strips: per arm, prompt and picture of a few frames.
    """

    values: Mapping[str, Any]
    strips: Mapping[str, Sequence[tuple[str, bytes]]]


@dataclass
class _Column:
    """An arm while it is being measured."""

    name: str
    trainings: list[list[str]] = field(default_factory=list)
    speed: Path | None = None


def evaluate_arms(
    config: SuiteConfig,
    specs: Sequence[ArmSpec],
    prompts: Sequence[BenchPrompt] | None,
    bench: Bench,
) -> Evaluation | None:
    """Measure what is missing of every arm, and put it all together.

    Args:
        config: how much.
        specs: the arms; the first is what the others are compared with.
        prompts: what is to be shown; none: what the videos of a folder carry.
        bench: measures and files.

    Returns:
        None if other processes have not finished their part yet.

    Raises:
        CheckpointError: for an unknown model.
        InputError: for prompts or videos that cannot be used.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"arms must have different names, got {', '.join(names)}")
    if config.device.type == "cuda":
        # Kernels are launched on the current device, whatever device their tensors are on.
        torch.cuda.set_device(config.device)
    columns: list[_Column] = []
    first: ModelSource | None = None
    shown = prompts
    for spec in specs:
        column = _Column(spec.name)
        for model in spec.models:
            source, own = _source(config, spec, model, prompts)
            shown = own if shown is None else shown
            if first is None and isinstance(source, ModelSource):
                first = source
            takes = takes_of(
                own[: spec.prompts],
                repetitions=spec.repetitions or config.repetitions,
                seed=config.seed,
            )
            _measure(config, bench, source, takes)
            column.trainings.append([bench.key(source, take) for take in takes])
            if isinstance(source, ModelSource) and column.speed is None:
                column.speed = _speed(config, bench, source, own[0].text)
        columns.append(column)
    if shown is None:
        raise InputError("there is nothing to show: no prompt was given")
    if config.renders and first is not None and all(prompt.scene for prompt in shown):
        takes = takes_of(shown, repetitions=config.repetitions, seed=config.seed)
        for truth in _truths(config, first):
            _measure(config, bench, truth, takes)
            columns.append(_Column(truth.name, [[bench.key(truth, take) for take in takes]]))
    arms = _collect(bench, columns)
    return None if arms is None else _evaluation(config, bench, arms, len(shown))


def _truths(config: SuiteConfig, model: ModelSource) -> list[TruthSource]:
    size = (model.pipe.defaults.height, model.pipe.defaults.width)
    truth = TruthSource(*size, config.device)
    if not config.ceilings:
        return [truth]
    return [truth, TruthSource(*size, config.device, other=True), CodecSource(model)]


def _source(
    config: SuiteConfig, spec: ArmSpec, model: str, prompts: Sequence[BenchPrompt] | None
) -> tuple[Source, Sequence[BenchPrompt]]:
    if _holds_videos(Path(model)):
        files = FolderSource(Path(model), prompts)
        return files, files.prompts
    pipe: Pipeline = load(model, device=config.device, dtype=config.dtype)
    if prompts is None:
        raise InputError(f"{model} is a model: it needs prompts to make videos of")
    if pipe.text_encoder is None:
        raise CheckpointError(f"{model} has no text encoder, so it cannot be given prompts")
    return ModelSource(spec.name, pipe, model, steps=spec.steps, guidance=spec.guidance), prompts


def _holds_videos(folder: Path) -> bool:
    return (
        folder.is_dir()
        and not (folder / "model_index.json").is_file()
        and any(folder.glob("*.mp4"))
    )


def _measure(config: SuiteConfig, bench: Bench, source: Source, takes: Sequence[Take]) -> None:
    """Measure the part of the takes that falls to one process."""
    part, count = config.shard
    one = replace(bench, batch_size=1) if isinstance(source, FolderSource) else bench
    one.measure(source, takes[part::count])


def _speed(config: SuiteConfig, bench: Bench, source: ModelSource, prompt: str) -> Path | None:
    """The file with its frames per second, which one of the processes measures once."""
    if not config.speed_chunks:
        return None
    key = bench.key(source, Take(BenchPrompt(prompt), 0, 0, config.seed))
    path = bench.results.folder / f"speed-{key}.json"
    if config.shard[0] == 0 and not path.is_file():
        speed = measure_speed(
            source.pipe,
            prompt,
            chunks=config.speed_chunks,
            seed=config.seed,
            steps=source.steps,
            guidance_scale=source.guidance,
        )
        write_json(path, speed.to_json())
        bench.say(f"{source.name}: {speed.fps:.2f} frames a second")
    return path


def _collect(bench: Bench, columns: Sequence[_Column]) -> list[Arm] | None:
    arms = []
    for column in columns:
        trainings: list[list[Record]] = []
        for keys in column.trainings:
            found = [bench.results.get(key) for key in keys]
            trainings.append([record for record in found if record is not None])
            if len(trainings[-1]) < len(keys):
                return None
        if column.speed is not None and not column.speed.is_file():
            return None
        speed = None if column.speed is None else read_json(column.speed)
        arms.append(Arm(column.name, trainings, speed))
    return arms


def _evaluation(config: SuiteConfig, bench: Bench, arms: Sequence[Arm], prompts: int) -> Evaluation:
    from helios import __version__

    lengths = sorted(set(bench.lengths))
    reference = next((arm for arm in arms if arm.name == REFERENCE), None)
    models = [arm for arm in arms if arm.records[0].values["identity"]["kind"] not in TRUTHS]
    summaries = {arm.name: summary(arm, lengths, reference) for arm in arms}
    pairs = [compare(arm, models[0], length, reference) for arm in models[1:] for length in lengths]
    values: dict[str, Any] = {
        "helios": __version__,
        "suite": config.suite,
        "title": f"{_title([arm.name for arm in models])}: {config.suite}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": " ".join(("helios", *sys.argv[1:])),
        "environment": {"device": device_name(config.device), "torch": torch.__version__},
        "settings": {
            "seed": config.seed,
            "seeds per prompt": config.repetitions,
            "batch size": bench.batch_size,
        },
        "prompts": prompts,
        "lengths": lengths,
        "order": [arm.name for arm in arms],
        "arms": summaries,
        "pairs": pairs,
        "grades": {
            arm.name: {str(length): grades(summaries[arm.name], length) for length in lengths}
            for arm in models
        },
        "networks": dict(bench.networks.used),
        "missing": dict(bench.networks.missing),
    }
    return Evaluation(values, {arm.name: list(_strips(arm)) for arm in arms})


def _title(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return " · ".join(names)
    return f"{names[0]} and {len(names) - 1} others"


def _strips(arm: Arm, most: int = 8) -> Iterator[tuple[str, bytes]]:
    """The first video of each of the first prompts."""
    for record in arm.trainings[0][:most]:
        if record.values["repetition"] == 0:
            yield record.prompt, record.strip
