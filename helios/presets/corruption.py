"""How the past is damaged (training.md, 3.1)."""

from __future__ import annotations

from helios.history import CorruptionConfig

__all__ = ["flow"]


def flow() -> CorruptionConfig:
    """Recipe of stages 1 and 2: noise on eight frames in ten, blur on one, one clean.

    The weights that were published saw noise on nine frames in ten and nothing else.
    """
    return CorruptionConfig(
        noise=0.8, noise_range=(0.0, 1 / 3), down_up=0.1, down_up_range=(0.0, 0.1), scale=0.0
    )
