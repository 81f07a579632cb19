"""One remedy against drift taken away at a time, as settings of stages 1 and 2 (training.md, 10.5).

What concerns the network is part of its configuration and travels with its weights, so a model
that was trained without a remedy is sampled without it. Stages that start from such a model need
the same settings.
"""

from __future__ import annotations

import difflib

__all__ = ["ABLATIONS", "ablation"]

ABLATIONS: dict[str, tuple[str, ...]] = {
    "absolute-positions": ("stage.transformer.absolute_positions=true",),
    "no-anchor": ("stage.transformer.without_anchor=true",),
    "no-corruption": tuple(
        f"stage.corruption.{kind}=0"
        for kind in ("noise", "down_up", "exposure", "saturation", "scale")
    ),
    "clip-corruption": ("stage.corruption.granularity=clip",),
    "text-on-history": ("stage.transformer.guidance_cross_attn=false",),
}
"""Settings by name: relative positions, the first-frame anchor, damage of the past, its drawing
frame by frame, and text for noisy tokens only."""


def ablation(name: str) -> tuple[str, ...]:
    """The settings that take the remedy ``name`` away, each ``path=value``.

    Raises:
        ValueError: for an unknown name, with what there is.
    """
    if name not in ABLATIONS:
        close = difflib.get_close_matches(name, ABLATIONS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown ablation {name!r}: known are {', '.join(ABLATIONS)}{hint}")
    return ABLATIONS[name]
