"""What every figure is called, counted in and means: read by reports and by their readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from helios.evaluation.accuracy import ATTRIBUTES

__all__ = ["CATALOGUE", "Figure", "figure"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How to write one figure.

    Attributes:
        label: as people call it.
        unit: behind the number; empty for a plain one.
        better: which way is up; empty where neither is.
        digits: after the point.
        factor: the stored value times this is written.
        about: one sentence.
    """

    label: str
    unit: str = ""
    better: Literal["high", "low", ""] = ""
    digits: int = 2
    factor: float = 1.0
    about: str = ""

    def text(self, value: float | None) -> str:
        """The number alone; a dash where there is none."""
        if value is None or value != value:
            return "–"
        text = f"{value * self.factor:.{self.digits}f}"
        return text.removeprefix("-") if not float(text) else text

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


CATALOGUE: dict[str, Figure] = {
    "caption": Figure(
        label="caption accuracy",
        unit="%",
        better="high",
        digits=1,
        factor=100,
        about="Share of everything the caption says (colours, shapes, motion, setting, count, and "
        "size, material and camera where said) that the judge of scenes finds in a chunk.",
    ),
    "delta_e": Figure(
        label="colour drift ΔE",
        better="low",
        about="CIEDE2000 between the mean colours of the first and the last 15 % of the frames.",
    ),
    "lightness": Figure(label="lightness L*", about="Mean CIE lightness, 0 to 100."),
    "saturation": Figure(
        label="saturation", unit="%", factor=100, about="Mean HSV saturation of the pixels."
    ),
    "sharpness": Figure(
        label="sharpness",
        unit="1e-4",
        better="high",
        about="Variance of the Laplacian of the grey frame; blur lowers it, noise raises it.",
    ),
    "blur": Figure(
        label="blur residual",
        unit="%",
        better="low",
        factor=100,
        about="Share of neighbour differences that survive another blur; soft frames have more.",
    ),
    "noise": Figure(
        label="noise residual",
        unit="levels",
        better="low",
        about="White noise in levels of 255, by the finest diagonal detail of quiet places.",
    ),
    "amplitude": Figure(
        label="motion amplitude",
        unit="px",
        about="Mean length of the optical flow between neighbouring frames, in pixels of a picture "
        "640 pixels wide.",
    ),
    "smoothness": Figure(
        label="motion smoothness",
        unit="%",
        better="high",
        factor=100,
        about="How well every second frame follows from its neighbours along the flow.",
    ),
    "flicker": Figure(
        label="boundary flicker",
        better="low",
        about="Mean step across chunk borders over the median step inside chunks; 1 is seamless.",
    ),
    "snap_back": Figure(
        label="snap-back",
        better="low",
        about="Mean return towards the first frame at borders, in mean changes inside chunks; "
        "0 is seamless.",
    ),
    "snap_rate": Figure(
        label="snaps",
        unit="% of borders",
        better="low",
        digits=1,
        factor=100,
        about="Borders at which the video returns towards its first frame by more than three "
        "median changes.",
    ),
    "away": Figure(
        label="distance from the first frame",
        unit="levels",
        about="Mean absolute difference from the first frame, in levels of 255.",
    ),
    "step": Figure(
        label="step between frames",
        unit="levels",
        about="Mean absolute difference from the frame before, in levels of 255.",
    ),
    "aesthetic": Figure(
        label="aesthetic",
        better="high",
        digits=3,
        about="CLIP ViT-L/14 with the linear aesthetic head, mean over frames, over 10.",
    ),
    "semantic": Figure(
        label="semantic",
        better="high",
        digits=3,
        about="Cosine of video and text in a shared embedding, over eight frames.",
    ),
    "naturalness": Figure(
        label="naturalness",
        better="high",
        digits=3,
        about="A vision-language model's grade of 16 frames, 1 to 5, mapped to 0 to 1.",
    ),
    "feature_distance": Figure(
        label="feature distance",
        better="low",
        digits=3,
        about="Fréchet distance to renders of the same captions, in features of the judge.",
    ),
    "kernel_distance": Figure(
        label="kernel distance",
        better="low",
        digits=4,
        about="Unbiased kernel distance to renders of the same captions, same features.",
    ),
    "diversity": Figure(
        label="diversity",
        unit="levels",
        better="high",
        digits=1,
        about="Root mean square difference of first chunks of one caption with other seeds.",
    ),
    "passes": Figure(
        label="forward passes per chunk",
        better="low",
        digits=0,
        about="Calls of the transformer, guidance counted, in a chunk after the first.",
    ),
    "token_steps": Figure(
        label="token-steps per chunk",
        unit="k",
        better="low",
        digits=1,
        factor=1e-3,
        about="Noisy tokens times forward passes in a chunk after the first.",
    ),
    "fps": Figure(
        label="frames per second",
        better="high",
        digits=2,
        about="One video at a time, decoded, after a first chunk to warm up.",
    ),
}


def figure(name: str) -> Figure:
    """The entry of ``name``; an attribute of captions is a percentage of its own."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name in ATTRIBUTES:
        about = f"Videos whose {name} is judged right."
        return Figure(label=name, unit="%", better="high", digits=1, factor=100, about=about)
    return Figure(label=name, digits=3)
