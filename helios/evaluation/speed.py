"""How fast a model is: frames per second of one stream, and how much work a chunk is.

The clock measures one machine; forward passes and token-steps (noisy tokens times passes) do not
depend on any, so they compare models measured in different places.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from helios.geometry import CHUNK_FRAMES, token_count
from helios.pipeline import Request

if TYPE_CHECKING:
    from helios.pipeline import Pipeline

__all__ = ["Speed", "Work", "counted", "measure_speed"]


@dataclass
class Work:
    """What the transformer was called for, per video.

    Attributes:
        passes: forward passes.
        token_steps: noisy tokens, summed over the passes; history tokens are the same for every
            pass of a size and left out.
    """

    passes: int = 0
    token_steps: int = 0


@contextmanager
def counted(pipe: Pipeline) -> Iterator[Work]:
    """Count the forward passes of a block of code; a batch counts once."""
    work, engine = Work(), pipe.engine

    def note(shape: torch.Size) -> None:
        work.passes += 1
        work.token_steps += token_count(*shape[-3:])

    engine.watchers.append(note)
    try:
        yield work
    finally:
        engine.watchers.remove(note)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One stream against the clock.

    Attributes:
        fps: frames per second of all chunks after the first, decoding included.
        first_frame: seconds to the first decoded chunk: the first pass over cold caches.
        chunk: median seconds of a later chunk.
        sample: seconds of it spent in the transformer.
        decode: seconds of it spent in the decoder.
        memory: most memory used, bytes: of the GPU, or of the process.
        chunks: how many were made.
    """

    fps: float
    first_frame: float
    chunk: float
    sample: float
    decode: float
    memory: int
    chunks: int

    def to_json(self) -> dict[str, float | int]:
        """Plain values, rounded."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def measure_speed(
    pipe: Pipeline,
    prompt: str,
    *,
    chunks: int = 3,
    seed: int = 0,
    steps: int | tuple[int, ...] | None = None,
    guidance_scale: float | None = None,
) -> Speed:
    """Stream one video of ``chunks`` chunks, at least two: the first one warms up.

    Raises:
        ValueError: if there are fewer.
    """
    if chunks < 2:
        raise ValueError(f"speed needs at least 2 chunks, the first to warm up, got {chunks}")
    if pipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pipe.device)
    request = Request(
        prompt=prompt,
        num_frames=chunks * CHUNK_FRAMES,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
    )
    totals, samples, decodes = [], [], []
    began = time.perf_counter()
    for chunk in pipe.stream(request):
        # Frames are on the host by now, so the device has nothing left to do.
        now = time.perf_counter()
        totals.append(now - began)
        samples.append(chunk.timings["sample"])
        decodes.append(chunk.timings["decode"])
        began = now
    return Speed(
        fps=CHUNK_FRAMES * (chunks - 1) / sum(totals[1:]),
        first_frame=totals[0],
        chunk=statistics.median(totals[1:]),
        sample=statistics.median(samples[1:]),
        decode=statistics.median(decodes[1:]),
        memory=_peak(pipe.device),
        chunks=chunks,
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)
