"""Train the judge on scenes rendered while it learns.

    python -m helios.evaluation.train_judge --seconds 240 --out DIR [--codec MODEL/vae]

Renders go into a ring of clips on the device; training draws from it with fresh damage each time
(:mod:`helios.evaluation.degrade`). With a codec, half of the clips go through the autoencoder,
so that its softness is nothing new. The report is measured on held-out attribute combinations.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from helios.data.scenes import (
    CAMERAS,
    COLOURS,
    MATERIALS,
    MOTIONS,
    SETTINGS,
    SHAPES,
    SIZES,
    sample_scenes,
)
from helios.evaluation.accuracy import Table, assess, table_json, tables_markdown
from helios.evaluation.clips import (
    RENDER_BATCH,
    autocast,
    device_name,
    film,
    round_trip,
    to_bytes,
)
from helios.evaluation.degrade import blur, degrade
from helios.evaluation.metrics.judge_file import save_judge
from helios.evaluation.metrics.scene_judge import (
    STRIDE,
    JudgeConfig,
    Opinion,
    SceneJudge,
    to_input,
)
from helios.geometry import CHUNK_FRAMES
from helios.storage import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from helios.codec import Codec
    from helios.data.scenes import Scene
    from helios.evaluation.reading import Reading

__all__ = ["ClipRing", "JudgeTraining", "judge_config", "judge_loss", "labels", "train", "validate"]

ABSENT = -100
"""The label of an object that is not there; cross-entropy leaves it out."""

MOMENTS = 130
"""Training clips begin at a random frame below this: later chunks are as common as first ones."""

BLUR = 1.5
"""Standard deviation in pixels of the blur in the second table of the report."""

Labels = dict[str, "Tensor"]


@dataclass(frozen=True, kw_only=True)
class JudgeTraining:
    """How long and on what.

    Attributes:
        seconds: time for compiling, rendering and learning together; the learning rate follows it.
        steps: end after this many steps instead, the learning rate following the steps.
        batch_size: clips per step.
        peak_rate: highest learning rate (AdamW).
        capacity: clips kept; 1.9 MB each at 128x192.
        first_clips: rendered before the first step.
        render_batch: clips per call of the renderer.
        render_share: share of the time spent on new clips.
        codec_share: share of the clips that go through the codec, if there is one.
        height, width: pixels, multiples of 8.
        seed: of scenes, weights and damage.
    """

    seconds: float = 240.0
    steps: int | None = None
    batch_size: int = 64
    peak_rate: float = 3e-3
    capacity: int = 10240
    first_clips: int = 768
    render_batch: int = RENDER_BATCH
    render_share: float = 0.4
    codec_share: float = 0.5
    height: int = 128
    width: int = 192
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.seconds <= 0 or (self.steps is not None and self.steps < 1):
            raise ValueError("seconds and steps must be positive")
        if not 1 <= self.first_clips <= self.capacity or self.render_batch > self.capacity:
            raise ValueError("capacity must hold first_clips and render_batch")


def judge_config() -> JudgeConfig:
    """A judge of today's vocabulary."""
    return JudgeConfig(
        colours=tuple(COLOURS),
        shapes=tuple(SHAPES),
        sizes=tuple(SIZES),
        materials=tuple(MATERIALS),
        motions=tuple(MOTIONS),
        settings=tuple(SETTINGS),
        cameras=tuple(CAMERAS),
    )


def labels(scenes: Sequence[Scene], config: JudgeConfig) -> Labels:
    """Class numbers: ``[N, colours]`` for shape, size and material, else ``[N]``, int64."""
    count, colours = len(scenes), len(config.colours)
    result = {name: torch.full((count, colours), ABSENT) for name in ("shape", "size", "material")}
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            column = config.colours.index(item.colour)
            result["shape"][row, column] = config.shapes.index(item.shape)
            result["size"][row, column] = config.sizes.index(item.size)
            result["material"][row, column] = config.materials.index(item.material)
    main = [config.colours.index(scene.objects[0].colour) for scene in scenes]
    result["main"] = torch.tensor(main)
    result["motion"] = torch.tensor([config.motions.index(s.motion) for s in scenes])
    result["setting"] = torch.tensor([config.settings.index(s.setting) for s in scenes])
    result["camera"] = torch.tensor([config.cameras.index(s.camera) for s in scenes])
    return result


def judge_loss(opinion: Opinion, truth: Labels) -> dict[str, Tensor]:
    """Cross-entropy per attribute, weighted; their sum is what is minimised."""
    present = (truth["shape"] != ABSENT).float()
    losses = {"present": 4 * F.binary_cross_entropy_with_logits(opinion.present, present)}
    for name, weight in (("shape", 1.5), ("size", 0.25), ("material", 0.4)):
        logits = getattr(opinion, name).flatten(0, 1)
        losses[name] = weight * F.cross_entropy(logits, truth[name].flatten())
    for name, weight in (("main", 1.0), ("motion", 1.0), ("setting", 0.25), ("camera", 1.0)):
        losses[name] = weight * F.cross_entropy(getattr(opinion, name), truth[name])
    return losses


class ClipRing:
    """The last ``capacity`` clips with their labels, on the device, oldest overwritten first."""

    def __init__(self, config: JudgeTraining, device: torch.device) -> None:
        # An even number of frames, so that the even and the odd ones are two equal clips.
        self.length = CHUNK_FRAMES // STRIDE * STRIDE
        shape = (config.capacity, self.length, config.height, config.width, 3)
        self.frames = torch.empty(shape, dtype=torch.uint8, device=device)
        self.labels: Labels = {}
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, len(self.frames))

    def add(self, frames: Tensor, truth: Labels) -> None:
        """Take in clips uint8 ``[N, T, H, W, 3]``."""
        device, capacity = self.frames.device, len(self.frames)
        places = (self.added + torch.arange(len(frames))).remainder(capacity).to(device)
        self.frames[places] = frames[:, : self.length]
        for name, values in truth.items():
            if name not in self.labels:
                empty = torch.zeros((capacity, *values.shape[1:]), dtype=torch.long, device=device)
                self.labels[name] = empty
            self.labels[name][places] = values.to(device)
        self.added += len(frames)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Labels]:
        """A batch of half-rate clips ``[count, T/2, H, W, 3]`` and their labels."""
        device = self.frames.device
        chosen = torch.randint(len(self), (count,), generator=generator, device=device)
        start = int(torch.randint(STRIDE, (), generator=generator, device=device))
        frames = self.frames[:, start::STRIDE][chosen]
        return frames, {name: values[chosen] for name, values in self.labels.items()}


def train(
    config: JudgeTraining, device: torch.device, codec: Codec | None = None
) -> tuple[SceneJudge, list[float]]:
    """Train a judge; prints its progress.

    Returns:
        The judge in evaluation mode, and the loss of every step.
    """
    began = time.monotonic()
    torch.manual_seed(config.seed)
    judge = SceneJudge(judge_config()).to(device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.02)
    generator = torch.Generator(device).manual_seed(config.seed)
    ring, source = ClipRing(config, device), _clips(config, device, codec)
    while len(ring) < config.first_clips:
        ring.add(*next(source))
    print(f"{len(ring)} clips after {time.monotonic() - began:.0f} s", flush=True)
    first = time.monotonic()
    rendering = 0.0
    history: list[Tensor] = []
    while (progress := _progress(config, began, first, len(history))) < 1:
        if rendering <= config.render_share * (time.monotonic() - first):
            rendering += _timed(device, lambda: ring.add(*next(source)))
        rate = config.peak_rate * _rate(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        frames, truth = ring.draw(config.batch_size, generator)
        # Damage in float32: only the network itself runs in the narrow type.
        seen = degrade(to_input(frames), generator)
        with autocast(device):
            opinion = judge(seen)
        losses = judge_loss(opinion, truth)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        history.append(loss.detach())
        if len(history) % 100 == 0:
            parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            done = f"{time.monotonic() - began:.0f} s, step {len(history)}, {ring.added} clips"
            print(f"{done}: loss {loss.item():.3f} ({parts})", flush=True)
    return judge.eval(), torch.stack(history).tolist()


def validate(
    judge: SceneJudge,
    count: int,
    device: torch.device,
    codec: Codec | None = None,
    *,
    height: int = 128,
    width: int = 192,
    seed: int = 1_000_003,
) -> dict[str, Table]:
    """Tables on held-out combinations: clean, blurred, and through the codec if there is one."""
    scenes = sample_scenes(count, seed=seed, split="test")
    seen: dict[str, list[Reading]] = {"clean": [], "blurred": []}
    if codec is not None:
        seen["codec"] = []
    for number, first in enumerate(range(0, count, RENDER_BATCH)):
        part = scenes[first : first + RENDER_BATCH]
        # Chunks from anywhere in a video, as generated ones are.
        start = CHUNK_FRAMES * (number % 3)
        frames = film(part, start=start, height=height, width=width, device=device)
        seen["clean"] += judge.read(frames)
        seen["blurred"] += judge.read(to_bytes(blur(to_input(frames), BLUR)))
        if codec is not None:
            seen["codec"] += judge.read(round_trip(codec, frames))
    return {name: assess(scenes, readings) for name, readings in seen.items()}


def _clips(
    config: JudgeTraining, device: torch.device, codec: Codec | None
) -> Iterator[tuple[Tensor, Labels]]:
    """Endless renders from random moments of training scenes, some through the codec."""
    rng = random.Random(config.seed)
    names, size, number = judge_config(), config.render_batch, 0
    while True:
        scenes = sample_scenes(size, seed=config.seed, split="train", start=number)
        number += size
        frames = film(
            scenes,
            start=rng.randrange(MOMENTS),
            height=config.height,
            width=config.width,
            device=device,
            batch_size=size,
        )
        if codec is not None:
            through = round(config.codec_share * size)
            frames[:through] = round_trip(codec, frames[:through])
        yield frames, labels(scenes, names)


def _timed(device: torch.device, work: Callable[[], None]) -> float:
    """Seconds that ``work`` takes on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.monotonic()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began


def _progress(config: JudgeTraining, began: float, first: float, steps: int) -> float:
    """Share of the training that is done, 0 to 1."""
    if config.steps is not None:
        return steps / config.steps
    now = time.monotonic()
    return (now - first) / max(config.seconds - (first - began), 1e-9)


def _rate(progress: float) -> float:
    """Linear rise over the first 3 %, then a cosine to zero."""
    return min(progress / 0.03 + 0.02, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, validate, and write the judge with its report to ``--out``."""
    parser = argparse.ArgumentParser(description="Train the judge of scenes.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and report")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, all included")
    parser.add_argument("--steps", type=int, help="end after this many steps instead")
    parser.add_argument("--codec", type=Path, help="folder of an autoencoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--clips", type=int, default=10240, help="clips kept on the device")
    parser.add_argument("--first-clips", type=int, default=768, help="before the first step")
    parser.add_argument("--peak-rate", type=float, default=3e-3)
    parser.add_argument("--validation", type=int, default=1000, help="held-out scenes")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # every step has the same shapes
    codec = None
    if options.codec is not None:
        from helios.codec import load_codec

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        codec = load_codec(options.codec, device=device, dtype=dtype)
    config = JudgeTraining(
        seconds=options.seconds,
        steps=options.steps,
        batch_size=options.batch_size,
        peak_rate=options.peak_rate,
        capacity=options.clips,
        first_clips=min(options.first_clips, options.clips),
        render_batch=min(RENDER_BATCH, options.clips),
        height=options.height,
        width=options.width,
        seed=options.seed,
    )
    began = time.monotonic()
    judge, losses = train(config, device, codec)
    trained = time.monotonic() - began
    # Of a batch, half of which went through the codec; every fourth is enough.
    clips, _ = next(_clips(config, device, codec))
    save_judge(judge, options.out, clips[::4])
    tables = validate(
        judge, options.validation, device, codec, height=options.height, width=options.width
    )
    report = {
        "seconds": round(trained, 1),
        "steps": len(losses),
        "last loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "parameters": sum(value.numel() for value in judge.parameters()),
        "device": device_name(device),
        "torch": torch.__version__,
        "tables": {name: table_json(table) for name, table in tables.items()},
    }
    write_json(options.out / "report.json", report)
    print(json.dumps({name: report[name] for name in report if name != "tables"}))
    print(tables_markdown(tables))


if __name__ == "__main__":
    main()
