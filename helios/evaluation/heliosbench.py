"""Prompts to videos to records: the loop that every suite shares.

Videos of equal length go through the source and the meter as one batch. What is filed already is
not made again, so an interrupted run goes on; several processes may share the work of one folder.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from helios.evaluation.drift import curves, picks, summarise
from helios.evaluation.intervals import plain
from helios.evaluation.meter import Measured, Meter
from helios.evaluation.metrics.networks import Networks
from helios.evaluation.prompts import BenchPrompt
from helios.evaluation.sources import Source, Take
from helios.evaluation.store import Record, Results, digest
from helios.geometry import CHUNK_FRAMES, chunk_count
from helios.pipeline import resident_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helios.evaluation.metrics.scene_judge import SceneJudge

__all__ = ["SCHEMA", "TIERS", "Bench", "takes_of"]

SCHEMA = 2
"""Version of what is measured and how it is written; records of another one are made again."""

TIERS = (81, 240, 720, 1440)
"""Lengths of HeliosBench, in frames (specification "training", 9.1)."""

STRIP_FRAMES = 8
STRIP_WIDTH = 160

STREAM_POINTS = 50
"""Chunks of which time and memory are kept."""

PARTS = ("whole", "first", "last")


def takes_of(
    prompts: Sequence[BenchPrompt], *, repetitions: int = 1, seed: int = 0
) -> tuple[Take, ...]:
    """Every prompt ``repetitions`` times; the seed of a video does not depend on how many."""
    return tuple(
        Take(prompt, index, repetition, seed + 100_000 * repetition + index)
        for repetition in range(repetitions)
        for index, prompt in enumerate(prompts)
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What measures videos, and where the records go.

    Attributes:
        results: the folder.
        lengths: frames after which figures are taken; the longest is what is generated.
        judge: of scenes; none if nothing is to be read off them.
        judge_name: what tells one judge from another.
        networks: further scores.
        batch_size: videos made at once.
        say: told how far things are.
    """

    results: Results
    lengths: tuple[int, ...] = TIERS
    judge: SceneJudge | None = None
    judge_name: str = ""
    networks: Networks = field(default_factory=Networks)
    batch_size: int = 1
    say: Callable[[str], None] = _say

    def __post_init__(self) -> None:
        """Refuse lengths that cannot be measured."""
        if not self.lengths or min(self.lengths) < CHUNK_FRAMES:
            raise ValueError(
                f"lengths must be at least {CHUNK_FRAMES} frames, one chunk, got {self.lengths}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def key(self, source: Source, take: Take) -> str:
        """The name of a record: everything that decides its content."""
        return digest(
            {
                "schema": SCHEMA,
                "source": source.identity(),
                "prompt": take.prompt.text,
                "scene": repr(take.prompt.scene),
                "repetition": take.repetition,
                "seed": take.seed,
                "lengths": sorted(set(self.lengths)),
                "judge": self.judge_name if self.judge is not None else None,
                "networks": dict(sorted(self.networks.used.items())),
            }
        )

    def missing(self, source: Source, takes: Sequence[Take]) -> list[Take]:
        """Those of which there is no record."""
        return [take for take in takes if self.results.get(self.key(source, take)) is None]

    def measure(self, source: Source, takes: Sequence[Take]) -> None:
        """Make the records that are missing."""
        rest = self.missing(source, takes)
        done = len(takes) - len(rest)
        if done:
            self.say(f"{source.name}: {done} of {len(takes)} videos are there already")
        for first in range(0, len(rest), self.batch_size):
            part = rest[first : first + self.batch_size]
            began = time.monotonic()
            self._batch(source, part)
            done += len(part)
            took = time.monotonic() - began
            self.say(f"{source.name}: {done} of {len(takes)} videos, {took:.1f} s for {len(part)}")

    def records(self, source: Source, takes: Sequence[Take]) -> list[Record]:
        """All records, in the order of ``takes``.

        Raises:
            ValueError: if one is missing.
        """
        found = [self.results.get(self.key(source, take)) for take in takes]
        whole = [record for record in found if record is not None]
        if len(whole) < len(takes):
            lacking = len(takes) - len(whole)
            raise ValueError(
                f"{source.name}: {lacking} of {len(takes)} videos are not measured yet"
            )
        return whole

    def _batch(self, source: Source, takes: Sequence[Take]) -> None:
        longest = max(self.lengths)
        wanted = set(_strip_frames(longest))
        for length in self.lengths:
            for clip in self.networks.clips.values():
                for part in PARTS:
                    wanted.update(picks(length, clip.frames, part))
        meter = Meter(
            [take.prompt for take in takes],
            judge=self.judge,
            scores=self.networks.frames,
            keep=tuple(wanted),
        )
        seconds, memory = [], []
        began = time.perf_counter()
        for chunk in source.chunks(takes, chunk_count(longest)):
            seconds.append(time.perf_counter() - began)
            memory.append(resident_memory(chunk.device) or 0)
            meter.add(chunk)
            began = time.perf_counter()
        if meter.frames < longest:
            raise ValueError(
                f"{source.name}: a video has {meter.frames} frames, {longest} are to be measured"
            )
        for take, measured in zip(takes, meter.finish(), strict=True):
            record = self._record(source, take, measured, {"seconds": seconds, "memory": memory})
            self.results.put(self.key(source, take), record)

    def _record(
        self,
        source: Source,
        take: Take,
        measured: Measured,
        stream: Mapping[str, Sequence[float]],
    ) -> Record:
        work = source.work
        values: dict[str, Any] = {
            "schema": SCHEMA,
            "source": source.name,
            "identity": source.identity(),
            "prompt": take.prompt.text,
            "index": take.index,
            "repetition": take.repetition,
            "seed": take.seed,
            "objects": None if take.prompt.scene is None else len(take.prompt.scene.objects),
            "figures": {
                str(length): summarise(measured, length, self._clips(take, measured, length))
                for length in self.lengths
            },
            "work": None if work is None else vars(work),
            "stream": {
                name: [plain(value) for value in values[:: max(1, len(values) // STREAM_POINTS)]]
                for name, values in stream.items()
            },
        }
        small = np.zeros(0, np.uint8) if measured.small is None else measured.small
        features = np.asarray(measured.features, np.float16)
        frames = [measured.kept[index] for index in _strip_frames(max(self.lengths))]
        return Record(values, features, small, _webp(frames), curves(measured))

    def _clips(self, take: Take, measured: Measured, length: int) -> dict[str, dict[str, float]]:
        """What networks that look at clips say of the whole and of both ends."""
        result: dict[str, dict[str, float]] = {}
        for name, clip in self.networks.clips.items():
            result[name] = {}
            for part in PARTS:
                chosen = [measured.kept[index] for index in picks(length, clip.frames, part)]
                frames = torch.from_numpy(np.stack(chosen))
                result[name][part] = clip.score(frames, take.prompt.text)
        return result


def _strip_frames(length: int) -> list[int]:
    return picks(length, min(STRIP_FRAMES, length))


def _webp(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """Frames side by side in one small picture."""
    from PIL import Image

    height, width = frames[0].shape[:2]
    small = (min(width, STRIP_WIDTH), round(height * min(width, STRIP_WIDTH) / width))
    sheet = Image.new("RGB", (small[0] * len(frames), small[1]))
    for index, frame in enumerate(frames):
        picture = Image.fromarray(frame).resize(small, Image.Resampling.LANCZOS)
        sheet.paste(picture, (index * small[0], 0))
    target = io.BytesIO()
    sheet.save(target, format="WEBP", quality=72, method=4)
    return target.getvalue()
