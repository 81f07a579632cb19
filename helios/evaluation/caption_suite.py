"""How well a model does what captions say: the judge's tables, and continuations of true clips.

Captions are of attribute combinations that no training split holds. Beside the model stand the
renders themselves, their round trip through the codec, and a transformer with random weights, so
that every figure has its ceiling and its floor.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from helios.evaluation.accuracy import Table, assess, table_json, tables_markdown
from helios.evaluation.clips import RENDER_BATCH, decode, film, round_trip
from helios.evaluation.generation import chunk_latents, generate_batch, untrained
from helios.evaluation.metrics.pixel import moving_psnr, psnr
from helios.evaluation.prompts import scene_prompts
from helios.geometry import CHUNK_FRAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from helios.codec import Codec
    from helios.data.scenes import Description, Scene
    from helios.evaluation.reading import Reading
    from helios.pipeline import Pipeline

    Read = Callable[[Tensor], list[Reading]]

__all__ = ["PARTS", "AccuracyConfig", "Report", "continuation", "measure"]

PARTS = ("truth", "codec", "model", "untrained", "image", "video")
CONTINUED = 9
"""Frames of a continuation that are compared pixel by pixel; later ones may rightly differ."""
HIGHEST = 60.0
"""Equal clips have no finite ratio; in a mean they count as this many dB."""


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """What is measured and on how much.

    Attributes:
        captions: held-out captions.
        chunks: chunks per video; the first and the last are judged.
        untrained_chunks: the same for random weights.
        clips: true clips for the parts "image" and "video".
        steps: denoising steps; the model's own if not given.
        guidance: guidance scale; the model's own if not given.
        batch_size: videos generated at once.
        parts: some of ``PARTS``.
        seed: of scenes, captions and noise.
        height: pixels of the renders that nothing else decides.
        width: likewise.
    """

    captions: int = 1000
    chunks: int = 3
    untrained_chunks: int = 1
    clips: int = 256
    steps: int | tuple[int, ...] | None = None
    guidance: float | None = None
    batch_size: int = 128
    parts: tuple[str, ...] = PARTS
    seed: int = 20_000
    height: int = 128
    width: int = 192

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("captions", "chunks", "untrained_chunks", "clips", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {self.parts}")


@dataclass
class Report:
    """Tables by source, pixel figures by source, and the seconds each part took."""

    tables: dict[str, Table] = field(default_factory=dict)
    continuation: dict[str, dict[str, float]] = field(default_factory=dict)
    images: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tables": {name: table_json(table) for name, table in self.tables.items()},
            "continuation": self.continuation,
            "images": self.images,
            "seconds": self.seconds,
        }

    def to_markdown(self) -> str:
        """The tables as people read them."""
        parts = ["## Right on held-out captions, % (95 % interval)", tables_markdown(self.tables)]
        if self.continuation:
            parts.append(f"## Continuing a video: first {CONTINUED} frames against the truth")
            parts.append(_figures(self.continuation))
        if self.images:
            parts.append("## Starting from an image: first frame against the image")
            parts.append(_figures(self.images))
        parts.append(
            "Seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in self.seconds.items())
        )
        return "\n\n".join(parts) + "\n"

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the seconds of a block under ``name`` and say that it is done."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        print(f"{name}: {self.seconds[name]:.0f} s", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Captions:
    """Held-out scenes with a caption each, and what it states."""

    scenes: Sequence[Scene]
    texts: Sequence[str]
    stated: Sequence[Description]

    @classmethod
    def draw(cls, count: int, seed: int) -> Captions:
        """The first ``count`` of the endless list that ``seed`` names."""
        scenes, texts, stated = [], [], []
        for prompt in scene_prompts(count, seed):
            if prompt.scene is not None and prompt.stated is not None:
                scenes.append(prompt.scene)
                texts.append(prompt.text)
                stated.append(prompt.stated)
        return cls(scenes, texts, stated)

    def first(self, count: int) -> Captions:
        """Only the first few."""
        return Captions(self.scenes[:count], self.texts[:count], self.stated[:count])

    def table(self, readings: Sequence[Reading]) -> Table:
        """How the readings of one video per caption compare."""
        return assess(self.scenes, readings, self.stated)


def measure(
    config: AccuracyConfig, read: Read, pipe: Pipeline | None, device: torch.device
) -> Report:
    """All the parts that ``config`` names.

    Args:
        config: what and how much.
        read: the judge: uint8 chunks ``[B, 33, H, W, 3]`` to readings.
        pipe: the model; only the part "truth" goes without.
        device: where scenes are rendered.

    Raises:
        ValueError: if a part needs a model and there is none.
    """
    needs = [part for part in config.parts if part != "truth"]
    if pipe is None and needs:
        raise ValueError(f"{', '.join(needs)} need a model")
    report, captions = Report(), Captions.draw(config.captions, config.seed)
    if "truth" in config.parts or "codec" in config.parts:
        with report.timed("renders"):
            _renders(config, report, captions, read, pipe, device)
    if pipe is None:
        return report
    if "model" in config.parts:
        with report.timed("model"):
            _model(config, report, captions, read, pipe, "model", config.chunks)
    blank = untrained(pipe, config.seed)
    if "untrained" in config.parts:
        with report.timed("untrained"):
            _model(config, report, captions, read, blank, "untrained", config.untrained_chunks)
    few = captions.first(config.clips)
    if "image" in config.parts:
        with report.timed("image"):
            _images(config, report, few, read, {"model": pipe, "untrained": blank}, device)
    if "video" in config.parts:
        with report.timed("video"):
            _videos(config, report, few, read, {"model": pipe, "untrained": blank}, device)
    return report


def continuation(frames: Tensor, truth: Tensor) -> dict[str, float]:
    """PSNR of whole frames and of moving pixels, mean over clips with 95 % half-widths.

    Args:
        frames: uint8 ``[B, T, H, W, 3]``.
        truth: the same shape; only its first ``CONTINUED`` frames count.
    """
    made, true = frames[:, :CONTINUED], truth[:, :CONTINUED].to(frames.device)
    whole, moving = psnr(made, true).clamp_max(HIGHEST), moving_psnr(made, true)
    moving = moving[moving.isfinite()]
    return {
        "psnr": _mean(whole),
        "psnr ±": _half_width(whole),
        "moving": _mean(moving),
        "moving ±": _half_width(moving),
        "clips": float(len(whole)),
    }


def _renders(
    config: AccuracyConfig,
    report: Report,
    captions: Captions,
    read: Read,
    pipe: Pipeline | None,
    device: torch.device,
) -> None:
    """The scenes themselves, and what the codec leaves of them, in the judged chunks."""
    for chunk in sorted({0, config.chunks - 1}):
        seen: dict[str, list[Reading]] = {part: [] for part in ("truth", "codec")}
        for first in range(0, len(captions.scenes), RENDER_BATCH):
            scenes = captions.scenes[first : first + RENDER_BATCH]
            frames = _film(config, scenes, chunk, device)
            if "truth" in config.parts:
                seen["truth"] += read(frames)
            if "codec" in config.parts and pipe is not None:
                seen["codec"] += read(_through(pipe.codec, frames))
        for part, readings in seen.items():
            if readings:
                report.tables[f"{part}, chunk {chunk + 1}"] = captions.table(readings)


def _model(
    config: AccuracyConfig,
    report: Report,
    captions: Captions,
    read: Read,
    pipe: Pipeline,
    name: str,
    chunks: int,
) -> None:
    """Videos of the captions, their first and last chunk judged."""
    latents = _generate(config, pipe, captions.texts, chunks)
    for chunk in sorted({0, chunks - 1}):
        readings = _read_latents(read, pipe.codec, chunk_latents(latents, chunk))
        report.tables[f"{name}, chunk {chunk + 1}"] = captions.table(readings)


def _images(
    config: AccuracyConfig,
    report: Report,
    captions: Captions,
    read: Read,
    pipes: dict[str, Pipeline],
    device: torch.device,
) -> None:
    """Videos from the first frame of true clips and their captions."""
    images = _film(config, captions.scenes, 0, device)[:, 0]
    for name, pipe in pipes.items():
        chunks = config.chunks if name == "model" else 1
        latents = _generate(config, pipe, captions.texts, chunks, images=images)
        for chunk in sorted({0, chunks - 1}):
            readings = _read_latents(read, pipe.codec, chunk_latents(latents, chunk))
            report.tables[f"image, {name}, chunk {chunk + 1}"] = captions.table(readings)
        made = decode(pipe.codec, latents[:, :, :1])[:, :1]
        values = psnr(made, images[:, None].to(made.device)).clamp_max(HIGHEST)
        report.images[name] = {"psnr": _mean(values), "psnr ±": _half_width(values)}


def _videos(
    config: AccuracyConfig,
    report: Report,
    captions: Captions,
    read: Read,
    pipes: dict[str, Pipeline],
    device: torch.device,
) -> None:
    """Two true chunks continued by one, beside standing still and the codec's own error."""
    past = torch.cat([_film(config, captions.scenes, chunk, device) for chunk in (0, 1)], dim=1)
    truth = _film(config, captions.scenes, 2, device)
    for name, pipe in pipes.items():
        latents = _generate(config, pipe, captions.texts, 1, videos=past)
        frames = decode(pipe.codec, latents)
        report.continuation[name] = continuation(frames, truth)
        report.tables[f"video, {name}"] = captions.table(read(frames))
    still = past[:, -1:].expand_as(truth)
    report.continuation["last frame repeated"] = continuation(still, truth)
    codec = next(iter(pipes.values())).codec
    report.continuation["truth through the codec"] = continuation(_through(codec, truth), truth)


def _generate(
    config: AccuracyConfig,
    pipe: Pipeline,
    texts: Sequence[str],
    chunks: int,
    *,
    images: Tensor | None = None,
    videos: Tensor | None = None,
) -> Tensor:
    return generate_batch(
        pipe,
        texts,
        num_chunks=chunks,
        seed=config.seed,
        batch_size=config.batch_size,
        steps=config.steps,
        guidance_scale=config.guidance,
        images=images,
        videos=videos,
    )


def _read_latents(read: Read, codec: Codec, latents: Tensor) -> list[Reading]:
    """Decode and judge a batch at a time: a thousand chunks of bytes need not exist at once."""
    return [
        reading for part in latents.split(RENDER_BATCH) for reading in read(decode(codec, part))
    ]


def _through(codec: Codec, frames: Tensor) -> Tensor:
    return round_trip(codec, frames).to(frames.device)


def _film(
    config: AccuracyConfig, scenes: Sequence[Scene], chunk: int, device: torch.device
) -> Tensor:
    return film(
        scenes,
        start=CHUNK_FRAMES * chunk,
        frames=CHUNK_FRAMES,
        height=config.height,
        width=config.width,
        device=device,
    )


def _mean(values: Tensor) -> float:
    return round(values.double().mean().item(), 3) if len(values) else math.nan


def _half_width(values: Tensor) -> float:
    """Half of the normal 95 % interval of the mean."""
    if len(values) < 2:
        return math.nan
    return round(1.96 * values.double().std().item() / math.sqrt(len(values)), 3)


def _figures(rows: dict[str, dict[str, float]]) -> str:
    names = [name for name in next(iter(rows.values())) if "±" not in name and name != "clips"]
    lines = ["| | " + " | ".join(f"{name} (dB)" for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for row, values in rows.items():
        cells = [f"{values[name]:.2f} ± {values[name + ' ±']:.2f}" for name in names]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
