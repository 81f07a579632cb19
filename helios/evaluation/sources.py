"""Where the videos that are measured come from: a model, the renderer, or files.

A source gives chunk after chunk of a batch and says what made them, in full: that identity is what
results are filed under.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from helios.errors import InputError
from helios.evaluation.clips import decode, film, round_trip
from helios.evaluation.generation import stream_batch
from helios.evaluation.prompts import BenchPrompt
from helios.evaluation.speed import Work, counted
from helios.geometry import CHUNK_FRAMES
from helios.media import read_settings, read_video
from helios.pipeline import find_model
from helios.storage import MANIFEST_NAME, file_digest, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from helios.pipeline import Pipeline

__all__ = [
    "CodecSource",
    "FolderSource",
    "ModelSource",
    "Source",
    "Take",
    "TruthSource",
    "fingerprint",
]

HASHED = 2**28
"""Files up to this size are hashed whole; larger ones by their length and last change."""


@dataclass(frozen=True)
class Take:
    """One video to make.

    Attributes:
        prompt: what it shows.
        index: number of the prompt.
        repetition: 0, or which of several videos of the same prompt.
        seed: of its noise.
    """

    prompt: BenchPrompt
    index: int
    repetition: int
    seed: int


class Source(Protocol):
    """Makes batches of videos, chunk after chunk."""

    name: str
    work: Work | None
    """Of the last chunk of the last batch, where there is a model."""

    def identity(self) -> dict[str, Any]:
        """Everything but the take that decides what is made, ready for JSON."""
        ...

    def chunks(self, takes: Sequence[Take], count: int) -> Iterator[Tensor]:
        """``count`` chunks of every take, uint8 ``[B, 33, H, W, 3]``."""
        ...


class ModelSource:
    """Videos of a pipeline.

    Args:
        name: how tables call it.
        pipe: the model.
        origin: the folder or name it was loaded from.
        steps: denoising steps; the model's own if not given.
        guidance: guidance scale; likewise.
    """

    def __init__(
        self,
        name: str,
        pipe: Pipeline,
        origin: str | Path,
        *,
        steps: int | tuple[int, ...] | None = None,
        guidance: float | None = None,
    ) -> None:
        self.name = name
        self.pipe = pipe
        self.steps = steps
        self.guidance = guidance
        self.work: Work | None = None
        self._weights = fingerprint(find_model(origin))

    def identity(self) -> dict[str, Any]:
        """Weights, sampler, size and precision."""
        defaults = self.pipe.defaults.to_json()
        return {
            "kind": "model",
            "weights": self._weights,
            "defaults": {name: defaults[name] for name in sorted(defaults) if name != "num_frames"},
            "steps": list(self.steps) if isinstance(self.steps, tuple) else self.steps,
            "guidance": self.guidance,
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "device": self.pipe.device.type,
        }

    def retouch(self, chunk: int, latents: Tensor) -> Tensor:
        """What is shown and remembered of the chunk with this number: here, what was made."""
        return latents

    def chunks(self, takes: Sequence[Take], count: int) -> Iterator[Tensor]:
        """Generated and decoded."""
        latents = stream_batch(
            self.pipe,
            [take.prompt.text for take in takes],
            [take.seed for take in takes],
            num_chunks=count,
            steps=self.steps,
            guidance_scale=self.guidance,
            retouch=self.retouch,
        )
        while True:
            with counted(self.pipe) as work:
                chunk = next(latents, None)
            if chunk is None:
                return
            self.work = work
            yield decode(self.pipe.codec, chunk)


class TruthSource:
    """Renders of the scenes behind the prompts: what a perfect model would make.

    Args:
        height: pixels.
        width: pixels.
        device: where they are rendered.
        other: renders the same words with other places, phases and speeds, as a perfect model
            would; otherwise the very scenes.
    """

    def __init__(
        self, height: int, width: int, device: torch.device, *, other: bool = False
    ) -> None:
        self.name = "other renders" if other else "renders"
        self.work: Work | None = None
        self._size = (height, width)
        self._device = device
        self._offset = 1000 if other else 0

    def identity(self) -> dict[str, Any]:
        """Size and which scenes."""
        return {"kind": "renders", "size": list(self._size), "offset": self._offset}

    def chunks(self, takes: Sequence[Take], count: int) -> Iterator[Tensor]:
        """Rendered; deterministic, so the seed of a take does not matter."""
        scenes = []
        for take in takes:
            scene = take.prompt.again(take.repetition + self._offset).scene
            if scene is None:
                raise InputError(f"no scene behind the prompt {take.prompt.text!r} to render")
            scenes.append(scene)
        for chunk in range(count):
            yield film(
                scenes,
                start=CHUNK_FRAMES * chunk,
                frames=CHUNK_FRAMES,
                height=self._size[0],
                width=self._size[1],
                device=self._device,
            )


class CodecSource(TruthSource):
    """The very renders through the autoencoder of a model: the best its transformer could do.

    Args:
        model: whose autoencoder.
    """

    def __init__(self, model: ModelSource) -> None:
        pipe = model.pipe
        super().__init__(pipe.defaults.height, pipe.defaults.width, pipe.device)
        self.name = "renders, codec"
        self._model = model

    def identity(self) -> dict[str, Any]:
        """Which autoencoder: that of the model's weights."""
        weights = self._model.identity()["weights"]
        return super().identity() | {"kind": "codec", "weights": weights}

    def chunks(self, takes: Sequence[Take], count: int) -> Iterator[Tensor]:
        """Rendered, encoded and decoded again, each chunk by itself."""
        for frames in super().chunks(takes, count):
            yield round_trip(self._model.pipe.codec, frames)


class FolderSource:
    """Videos that are there already, made by whatever model: ``*.mp4`` of one folder.

    The prompts are those that the files carry, or the lines of a prompt file in the order of the
    file names.

    Raises:
        InputError: if there is no video, or a video without a prompt.
    """

    def __init__(self, folder: Path, prompts: Sequence[BenchPrompt] | None = None) -> None:
        self.name = folder.resolve().name
        self.work: Work | None = None
        self._files = sorted(folder.glob("*.mp4"))
        if not self._files:
            raise InputError(f"{folder} holds neither a model nor a video (*.mp4)")
        if prompts is None:
            prompts = [BenchPrompt(_prompt_of(file)) for file in self._files]
        if len(prompts) < len(self._files):
            raise InputError(
                f"{folder} holds {len(self._files)} videos, and there are {len(prompts)} prompts"
            )
        self.prompts = tuple(prompts[: len(self._files)])

    def identity(self) -> dict[str, Any]:
        """The bytes of every file."""
        return {"kind": "files", "sha256": [file_digest(file) for file in self._files]}

    def chunks(self, takes: Sequence[Take], count: int) -> Iterator[Tensor]:
        """Read from the files; the last chunk has only the frames that are wanted."""
        if len(takes) != 1:
            raise ValueError("videos of a folder are read one at a time")
        path = self._files[takes[0].index]
        frames, _ = read_video(path, max_frames=count * CHUNK_FRAMES)
        for first in range(0, len(frames), CHUNK_FRAMES):
            yield torch.from_numpy(frames[first : first + CHUNK_FRAMES])[None]

    def length(self, index: int) -> int:
        """Frames of one file."""
        return len(read_video(self._files[index], max_frames=10**6)[0])


def _prompt_of(file: Path) -> str:
    prompt = read_settings(file).get("prompt")
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0][1]
    if not isinstance(prompt, str) or not prompt:
        raise InputError(f"{file} carries no prompt: give a file with one per video (--prompts)")
    return prompt


def fingerprint(folder: Path) -> str:
    """What a model folder holds, in 16 hexadecimal digits; its place and name do not matter."""
    digest = hashlib.sha256()
    manifest = folder / MANIFEST_NAME
    known = read_json(manifest)["files"] if manifest.is_file() else {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path == manifest or path.name.startswith("."):
            continue
        stat = path.stat()
        if name in known:
            mark = str(known[name]["sha256"])
        elif stat.st_size <= HASHED:
            mark = file_digest(path)
        else:
            mark = f"{stat.st_size} {stat.st_mtime_ns}"
        digest.update(f"{name}\0{mark}\n".encode())
    return digest.hexdigest()[:16]
