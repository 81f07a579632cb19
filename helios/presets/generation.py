"""What a checkpoint makes by default, by name."""

from __future__ import annotations

from dataclasses import replace

from helios.diffusion import CFG, CFGZero, Flat, Pyramid, ScheduleConfig, ShiftKind, ShiftLaw
from helios.pipeline import GenerationConfig

__all__ = [
    "base",
    "distilled",
    "mid",
    "published_schedule",
    "tiny",
    "tiny_distilled",
    "tiny_mid",
    "tiny_pyramid_schedule",
    "tiny_schedule",
]


def tiny() -> GenerationConfig:
    """The tiny model after stage 1: 192x128 pixels, 25 flat steps, guidance 3 (tiny.md, 6)."""
    return GenerationConfig(
        height=128, width=192, plan=Flat(steps=25, solver="euler"), guidance=CFG(3.0)
    )


def tiny_mid() -> GenerationConfig:
    """The tiny model after stage 2: 20 steps on each of three scales, guidance 3."""
    return replace(tiny(), plan=Pyramid(steps=(20, 20, 20), zero_init=2), guidance=CFGZero(3.0))


def tiny_distilled() -> GenerationConfig:
    """The tiny model after stage 3: 2 steps on each of three scales, guidance built in.

    Unlike the published one its first chunk has no more steps than the others: with twice as many
    it was no better at anything and worse at sizes (docs/results.md).
    """
    return replace(
        tiny(), plan=Pyramid(steps=(2, 2, 2), solver="renoise"), guidance=None, distilled=True
    )


def base() -> GenerationConfig:
    """Helios-Base: 50 flat steps, guidance 5."""
    return GenerationConfig(plan=Flat(steps=50), guidance=CFG(5.0))


def mid() -> GenerationConfig:
    """Helios-Mid: 20 steps on each of three scales, guidance 5 with optimised scale."""
    return GenerationConfig(plan=Pyramid(steps=(20, 20, 20), zero_init=2), guidance=CFGZero(5.0))


def distilled() -> GenerationConfig:
    """Helios-Distilled: 2 steps on each of three scales, guidance built in."""
    return GenerationConfig(
        plan=Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True),
        guidance=None,
        distilled=True,
    )


def tiny_schedule() -> ScheduleConfig:
    """The flat tiny model's noise levels: one scale, shift 2."""
    return ScheduleConfig(stages=1, shift=2.0, dynamic=None)


def tiny_pyramid_schedule(kind: ShiftKind = "exponential") -> ScheduleConfig:
    """Its noise levels on three scales: the published law on its own numbers of tokens.

    At 864, 216 and 54 tokens the shift is what the published one is on its three scales
    (training.md, 10.2), computed from the scale at hand.
    """
    return ScheduleConfig(stages=3, dynamic=ShiftLaw(kind=kind, base_tokens=32, max_tokens=512))


def published_schedule(*, distilled: bool = False) -> ScheduleConfig:
    """Noise levels of the published checkpoints: shifted by tokens, one scale late."""
    kind = "linear" if distilled else "exponential"
    return ScheduleConfig(dynamic=ShiftLaw(kind=kind), lag=True)  # type: ignore[arg-type]
