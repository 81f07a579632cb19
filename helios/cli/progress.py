"""A line per chunk: how far, how fast, how long still, how much memory."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from helios.pipeline import Chunk

__all__ = ["Progress"]


class Progress:
    """Prints to standard error; standard output stays free for results.

    Args:
        chunks: how many there will be.
        fps: playback rate, to compare the speed with real time.
        device: whose memory is shown.
    """

    def __init__(self, chunks: int, fps: int, device: torch.device) -> None:
        self.chunks = chunks
        self.fps = fps
        self.device = device
        self.frames = 0
        self.began = self.last = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def show(self, chunk: Chunk) -> None:
        """Print the line of ``chunk``, which was just written."""
        print(self.line(chunk), file=sys.stderr, flush=True)

    def line(self, chunk: Chunk) -> str:
        """The line of ``chunk``; the time since the last one is what it took, writing included."""
        from helios.pipeline import resident_memory

        now = time.monotonic()
        took, self.last = now - self.last, now
        self.frames += len(chunk.frames)
        rate = len(chunk.frames) / max(took, 1e-9)
        done = chunk.index + 1
        left = (self.chunks - done) * self.elapsed / done
        memory = resident_memory(self.device)
        parts = [
            f"chunk {done}/{self.chunks}",
            f"{self.frames / self.fps:.1f} s of video",
            f"{rate:.1f} frames/s ({rate / self.fps:.2f}x real time)",
            f"{_clock(left)} left",
        ]
        if memory is not None:
            parts.append(f"{memory / 2**20:.0f} MiB")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
