"""Noticing that a long video wanders off, and making the model trust its past less when it does.

Mean and variance of each latent channel are followed from chunk to chunk. A chunk that lies far
from what was usual is remembered with noise, as pasts are in training, so the model leans on it
less; the chunk itself is shown as it is (specification "model and sampling", 7.9 and B14,
"training", 3.5). Unlike the published code the comparison comes before the update, so the measured
distance is the full one, and the noise replaces signal instead of adding to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from helios.diffusion import mix

__all__ = ["DriftConfig", "DriftMonitor", "DriftReading", "LatentStatistics", "remembered"]


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """When a chunk counts as drifting and what follows.

    Attributes:
        rho: share of the old in the running statistics, 0 to below 1.
        mean_threshold: distance of the channel means (L2 over channels, averaged over samples).
        variance_threshold: likewise of the variances; drift is when both are exceeded.
        noise: noise level on a drifting chunk in the history, at the threshold; it grows in
            proportion to the smaller of the two excesses.
        max_noise: where that growth ends; training goes to one third.
    """

    rho: float = 0.9
    mean_threshold: float = 0.15
    variance_threshold: float = 0.15
    noise: float = 0.1
    max_noise: float = 1 / 3

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        for item in fields(self):
            value = getattr(self, item.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"anti_drift {item.name} must be a number, got {value!r}")
        if not 0 <= self.rho < 1:
            raise ValueError(f"anti_drift rho must be at least 0 and below 1, got {self.rho}")
        for name in ("mean_threshold", "variance_threshold"):
            if getattr(self, name) <= 0:
                raise ValueError(f"anti_drift {name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.noise <= self.max_noise <= 1:
            raise ValueError(
                "anti_drift noise must rise to max_noise within 0 to 1, "
                f"got {self.noise} and {self.max_noise}"
            )

    @classmethod
    def make(cls, value: object) -> DriftConfig | None:
        """The configuration that ``value`` stands for; none if it is off.

        Args:
            value: False, True (these defaults), a configuration, or a mapping of its fields.

        Raises:
            ValueError: for anything else.
        """
        if value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, cls):
            return value
        known = {item.name for item in fields(cls)}
        if not isinstance(value, Mapping) or not set(value) <= known:
            raise ValueError(
                "anti_drift must be False, True or a DriftConfig with the fields "
                f"{', '.join(sorted(known))}; got {value!r}"
            )
        return cls(**value)


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and unbiased variance of each channel, both ``[B, C]``."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> LatentStatistics:
        """Over frames, rows and columns of ``latents [B, C, T, h, w]``, in float32."""
        variance, mean = torch.var_mean(latents.detach().float(), dim=(2, 3, 4))
        return cls(mean, variance)

    def distance(self, other: LatentStatistics) -> tuple[float, float]:
        """How far apart the means are and the variances: L2 over channels, mean over samples."""
        mean = (self.mean - other.mean).norm(dim=1).mean()
        variance = (self.variance - other.variance).norm(dim=1).mean()
        return float(mean), float(variance)

    def moved(self, other: LatentStatistics, rho: float) -> LatentStatistics:
        """Exponential average: ``rho`` of this and ``1 - rho`` of ``other``."""
        return LatentStatistics(
            rho * self.mean + (1 - rho) * other.mean,
            rho * self.variance + (1 - rho) * other.variance,
        )


@dataclass(frozen=True)
class DriftReading:
    """What the monitor saw in one chunk.

    Attributes:
        mean: distance of the channel means from the running ones.
        variance: distance of the variances.
        noise: level the chunk is to be remembered with; 0 if it does not drift.
    """

    mean: float
    variance: float
    noise: float


@dataclass(frozen=True, eq=False)
class DriftMonitor:
    """Running statistics of a stream as a value; ``observe`` returns the next one.

    Attributes:
        config: thresholds and noise.
        running: none before the first chunk, which has nothing to be compared with.
    """

    config: DriftConfig
    running: LatentStatistics | None = None

    def observe(self, latents: Tensor) -> tuple[DriftMonitor, DriftReading]:
        """Compare the chunk ``[B, C, T, h, w]`` with what was usual, then learn from it."""
        seen = LatentStatistics.of(latents)
        if self.running is None:
            return DriftMonitor(self.config, seen), DriftReading(0.0, 0.0, 0.0)
        mean, variance = seen.distance(self.running)
        after = DriftMonitor(self.config, self.running.moved(seen, self.config.rho))
        return after, DriftReading(mean, variance, self._noise(mean, variance))

    def _noise(self, mean: float, variance: float) -> float:
        config = self.config
        excess = min(mean / config.mean_threshold, variance / config.variance_threshold)
        return min(config.noise * excess, config.max_noise) if excess > 1 else 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save; empty before the first chunk."""
        if self.running is None:
            return {}
        return {"mean": self.running.mean, "variance": self.running.variance}

    @classmethod
    def from_state(cls, config: DriftConfig, state: Mapping[str, Any]) -> DriftMonitor:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: if a tensor is missing, or the two do not belong together.
        """
        if not state:
            return cls(config)
        if set(state) != {"mean", "variance"} or state["mean"].shape != state["variance"].shape:
            raise ValueError(f"drift statistics are a mean and a variance, got {sorted(state)}")
        return cls(config, LatentStatistics(state["mean"], state["variance"]))


def remembered(
    latents: Tensor, reading: DriftReading, generator: torch.Generator | None = None
) -> Tensor:
    """What history keeps of a chunk: itself, or with the reading's noise if it drifts.

    ``(1 - s) latents + s noise``, the corruption that training used. Drawn where the generator
    lives, and only if there is drift.
    """
    if reading.noise <= 0:
        return latents
    source = generator.device if generator is not None else latents.device
    noise = torch.randn(latents.shape, generator=generator, device=source).to(latents.device)
    return mix(latents.float(), noise, reading.noise)
