"""How the past is damaged in each stage (training.md, 3.1)."""

from __future__ import annotations

from helios.history import CorruptionConfig

__all__ = ["distilling", "flow"]

NOISE = (0.0, 1 / 3)


def flow() -> CorruptionConfig:
    """Stages 1 and 2: noise on eight frames in ten, blur on one, one clean.

    The weights that were published saw noise on nine frames in ten and nothing else.
    """
    return CorruptionConfig(
        noise=0.8, noise_range=NOISE, down_up=0.1, down_up_range=(0.0, 0.1), scale=0.0
    )


def distilling() -> CorruptionConfig:
    """Stage 3: noise and changed exposure on four frames in ten each, two clean."""
    return CorruptionConfig(
        noise=0.4, noise_range=NOISE, exposure=0.4, exposure_range=(0.3, 1.7), scale=0.0
    )
