"""A chunk between the moment it is sampled and the moment it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from helios.pipeline.delivery import Clock, Delivery
from helios.pipeline.request import Chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Coming", "FirstFrame"]

FirstFrame: TypeAlias = "Callable[[NDArray[np.uint8]], object]"
"""Called with ``uint8 [H, W, 3]``."""


@dataclass(frozen=True)
class Coming:
    """A chunk that was sampled, or on CUDA will have been, and is on its way to the host."""

    index: int
    prompt: str | None
    clock: Clock
    delivery: Delivery
    measured: dict[str, float]

    def chunk(self, callback: Callable[[Chunk], None] | None = None) -> Chunk:
        """Wait for it.

        Raises:
            FloatingPointError: if the model gave values that are not finite.
        """
        frames, latents, decoded = self.delivery.wait()
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError(
                f"the model gave values that are not finite in chunk {self.index}; "
                "try dtype=float32"
            )
        sampled = self.clock.wait()
        times = {"sample": sampled, "decode": decoded, "total": sampled + decoded}
        chunk = Chunk(
            index=self.index,
            frames=frames,
            latents=latents,
            prompt=self.prompt,
            timings=times | self.measured,
        )
        if callback is not None:
            callback(chunk)
        return chunk
