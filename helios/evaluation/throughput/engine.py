"""What the throughput benchmark asks of an engine, and this package's own pipeline as one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from helios.diffusion import Denoiser
from helios.evaluation.throughput.subject import Lengths, Subject
from helios.evaluation.throughput.timeline import Library, measure_library
from helios.geometry import CHUNK_FRAMES
from helios.pipeline import Pipeline, Request, resident_memory

__all__ = ["Arm", "PipelineArm", "Visit", "visit_of"]


@dataclass(frozen=True)
class Visit:
    """One stream of an arm.

    Attributes:
        first: seconds from the request to the first chunk on the host.
        seconds: of every chunk after the first, from arrival to arrival.
        latents: of the first chunk ``[16, 9, h, w]``, on the CPU.
        first_frame: seconds from the request to the first frame, where it comes alone.
        memory: bytes after every chunk, where the arm knows: on CUDA the peak so far.
    """

    first: float
    seconds: list[float]
    latents: Tensor
    first_frame: float | None = None
    memory: tuple[int, ...] = ()


class Arm(ABC):
    """One engine, ready to run on the tensors of a ``Subject``.

    Attributes:
        name: as it is printed.
        kind: ``"baseline"``, ``"exact"``, ``"rounding"`` or ``"approximate"``.
    """

    name: str
    kind: str

    @abstractmethod
    def run(self, steps: tuple[int, ...], chunks: int, seed: int) -> Visit:
        """Stream ``chunks`` chunks to the host."""

    @abstractmethod
    def velocity(self, x: Tensor, timestep: Tensor) -> Tensor:
        """One forward pass over the subject's text and window."""

    @abstractmethod
    def frames(self, latents: Tensor) -> Tensor:
        """Decoded frames ``[B, 3, T, H, W]`` in [-1, 1], not clamped to bytes."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Frames as the arm hands them to the host, ``uint8 [B, T, H, W, 3]`` on the device."""

    @abstractmethod
    def modules(self) -> Sequence[torch.nn.Module]:
        """Everything it keeps on the device, to count bytes."""

    def library(self, lengths: Lengths) -> Library | None:
        """The library calls of one forward pass alone; none where nobody knows them."""
        return None

    @contextmanager
    def active(self) -> Iterator[None]:
        """The global switches this arm wants while it is measured."""
        yield


class PipelineArm(Arm):
    """A pipeline of this package.

    Args:
        name: as it is printed.
        kind: see ``Arm``.
        pipeline: over the tensors of ``subject``.
        subject: gives text and window.
    """

    def __init__(self, name: str, kind: str, pipeline: Pipeline, subject: Subject) -> None:
        self.name, self.kind = name, kind
        self.pipeline = pipeline
        self.subject = subject
        self._denoiser: Denoiser | None = None

    def run(self, steps: tuple[int, ...], chunks: int, seed: int) -> Visit:
        """Stream through the public interface."""
        self._denoiser = None
        request = Request(
            prompt_embeds=self.subject.text,
            height=self.subject.height,
            width=self.subject.width,
            num_frames=chunks * CHUNK_FRAMES,
            steps=steps,
            amplify_first_chunk=False,
            seed=seed,
        )
        alone: list[float] = []
        memory: list[int] = []
        latents = torch.empty(0)
        arrivals = [time.perf_counter()]
        for chunk in self.pipeline.stream(
            request, first_frame=lambda _: alone.append(time.perf_counter())
        ):
            arrivals.append(time.perf_counter())
            memory.append(self._memory())
            if chunk.index == 0:
                latents = chunk.latents
        return visit_of(arrivals, latents, alone[0] - arrivals[0], memory)

    def _memory(self) -> int:
        """Bytes: on CUDA the most that was in use so far, on a CPU what is."""
        device = self.pipeline.device
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        return resident_memory(device) or 0

    def velocity(self, x: Tensor, timestep: Tensor) -> Tensor:
        """As the sampler asks for it."""
        if self._denoiser is None:
            self._denoiser = self.pipeline.denoiser(self.subject.text, self.subject.window)
        return self._denoiser(x, timestep)

    def frames(self, latents: Tensor) -> Tensor:
        """By the pipeline's decoder."""
        return self.pipeline.codec.decode(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """By the pipeline's decoder, as bytes."""
        return self.pipeline.codec.decode_uint8(latents)

    def library(self, lengths: Lengths) -> Library | None:
        """Those of the exact algorithm; an approximation leaves some of them out."""
        if self.kind == "approximate":
            return None
        return measure_library(self.pipeline.transformer, lengths)

    def modules(self) -> Sequence[torch.nn.Module]:
        """Transformer and autoencoder."""
        return (self.pipeline.transformer, self.pipeline.codec.network)


def visit_of(
    arrivals: Sequence[float],
    latents: Tensor,
    first_frame: float | None = None,
    memory: Sequence[int] = (),
) -> Visit:
    """A visit from the moment of the request and the arrival of every chunk."""
    gaps = [late - early for early, late in pairwise(arrivals)]
    return Visit(gaps[0], gaps[1:], latents, first_frame, tuple(memory))
