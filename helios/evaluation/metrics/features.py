"""Distances between sets of videos: Fréchet and kernel distance of features, and diversity.

Features are those of the bundled judge of scenes, a frozen network trained to read attributes off
frames (specification "training", section 10.4). The Fréchet distance of few samples is too large by
about one over their number; a jackknife (``helios.evaluation.intervals``) takes that away to first
order. The kernel distance is unbiased for any number.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Moments", "diversity", "frechet_distance", "kernel_distance", "thumbnails"]

Features = NDArray[np.float64]


class Moments:
    """Mean and covariance of a growing set of features: two sums, however many there are."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = np.zeros(width)
        self.products = np.zeros((width, width))

    @classmethod
    def of(cls, features: Features) -> Moments:
        """Of all rows of ``[N, F]``."""
        moments = cls(features.shape[1])
        moments.add(features)
        return moments

    def add(self, features: Features) -> None:
        """Take in rows ``[N, F]``."""
        values = np.asarray(features, np.float64)
        self.count += len(values)
        self.total += values.sum(axis=0)
        self.products += values.T @ values

    def without(self, other: Moments) -> Moments:
        """What is left when the rows of ``other`` are taken out again."""
        rest = Moments(len(self.total))
        rest.count = self.count - other.count
        rest.total = self.total - other.total
        rest.products = self.products - other.products
        return rest

    @property
    def mean(self) -> Features:
        """``[F]``."""
        return self.total / self.count

    @property
    def covariance(self) -> Features:
        """``[F, F]``, unbiased."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        centred = self.products - np.outer(self.total, self.total) / self.count
        return centred / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)``, between Gaussians with these moments.

    Symmetric and zero only for equal moments; features have no unit, so neither has this.
    """
    shift = float(np.square(first.mean - second.mean).sum())
    one, two = first.covariance, second.covariance
    # The trace of the root of C1 C2 is that of (C1^½ C2 C1^½)^½, which is symmetric.
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ two @ root)
    cross = float(np.sqrt(inner.clip(min=0)).sum())
    return shift + float(np.trace(one) + np.trace(two)) - 2 * cross


def kernel_distance(first: Features, second: Features) -> float:
    """Unbiased squared maximum mean discrepancy under ``(x·y / F + 1)³``; 0 in the mean if equal.

    Source: Bińkowski, Sutherland, Arbel, Gretton 2018, "Demystifying MMD GANs", section 3.1.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("a kernel distance needs at least 2 samples on each side")
    width = first.shape[1]

    def kernel(x: Features, y: Features) -> Features:
        result: Features = (x @ y.T / width + 1) ** 3
        return result

    def apart(x: Features) -> float:
        own = kernel(x, x)
        return float((own.sum() - np.trace(own)) / (len(x) * (len(x) - 1)))

    return apart(first) + apart(second) - 2 * float(kernel(first, second).mean())


def diversity(videos: NDArray[np.uint8]) -> float:
    """Mean difference of the videos of one caption: root mean square over pairs, levels of 255.

    Args:
        videos: thumbnails ``[N, ...]`` of N videos with different seeds, N of at least 2.
    """
    if len(videos) < 2:
        raise ValueError(f"diversity needs at least 2 videos of a caption, got {len(videos)}")
    rows = videos.reshape(len(videos), -1).astype(np.float64)
    apart = [
        np.sqrt(np.square(rows[i] - rows[j]).mean())
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
    ]
    return float(np.mean(apart))


def thumbnails(frames: Tensor, count: int = 5, factor: int = 8) -> Tensor:
    """``count`` frames at 1 / ``factor`` of the size, uint8 ``[..., count, h, w, 3]``."""
    chosen = torch.linspace(0, frames.shape[-4] - 1, count).round().long()
    picked = frames[..., chosen.to(frames.device), :, :, :].float()
    blocks = picked.unflatten(-2, (-1, factor)).unflatten(-4, (-1, factor))
    return blocks.mean(dim=(-4, -2)).round().to(torch.uint8)
