"""Everything that is measured of a video while it streams past, a chunk at a time.

A meter keeps a few numbers per frame, the judge's words and features per chunk, and the frames that
some later look asks for; never the video. So memory grows by some sixty bytes per frame, and an
hour is as easy as a second. A batch of equally long videos is metered together.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from helios.evaluation.metrics.colour import frame_lab
from helios.evaluation.metrics.features import thumbnails
from helios.evaluation.metrics.motion import pair_motion, triple_smoothness
from helios.evaluation.metrics.pixel import frame_saturation, frame_sharpness
from helios.evaluation.metrics.seams import difference
from helios.evaluation.metrics.texture import frame_blur, frame_noise
from helios.evaluation.reading import stated_verdicts
from helios.geometry import CHUNK_FRAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from helios.evaluation.metrics.networks import FrameScore
    from helios.evaluation.metrics.scene_judge import SceneJudge
    from helios.evaluation.prompts import BenchPrompt

__all__ = ["SERIES", "Measured", "Meter"]

SERIES = (
    "lightness",
    "a",
    "b",
    "saturation",
    "sharpness",
    "blur",
    "noise",
    "amplitude",
    "smoothness",
    "step",
    "away",
)
"""One value per frame each; nan where a frame has none, as the first has no motion."""

THUMBNAILS = 5


@dataclass
class Measured:
    """What was seen of one video.

    Attributes:
        series: name to float32 ``[T]``.
        verdicts: per chunk, right or wrong of what the judge was asked; empty without a scene.
        features: the judge's features, float32 ``[chunks, F]``; empty without a judge.
        small: thumbnails of the first chunk, uint8 ``[5, h, w, 3]``.
        kept: frames that were asked for, by their number, uint8 ``[H, W, 3]``.
    """

    series: dict[str, NDArray[np.float32]]
    verdicts: list[dict[str, bool]] = field(default_factory=list)
    features: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    small: NDArray[np.uint8] | None = None
    kept: dict[int, NDArray[np.uint8]] = field(default_factory=dict)


class Meter:
    """Measures B videos of the same length.

    Args:
        prompts: what they should show, one per video.
        judge: reads scenes and gives features; none: neither is measured.
        scores: networks that score single frames, by name.
        keep: numbers of the frames to keep.
    """

    def __init__(
        self,
        prompts: Sequence[BenchPrompt],
        *,
        judge: SceneJudge | None = None,
        scores: Mapping[str, FrameScore] | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        self._prompts = prompts
        self._judge = judge
        self._scores = dict(scores or {})
        self._keep = frozenset(keep)
        # A small tensor per chunk would pin the C library's heap open between the large ones that
        # come and go, which grew by 18 MiB a chunk; one array per series lies in one place.
        self._series = [{name: array("f") for name in (*SERIES, *self._scores)} for _ in prompts]
        self._features = [array("f") for _ in prompts]
        self._videos = [Measured(series={}) for _ in prompts]
        self._first: Tensor | None = None
        self._tail: Tensor | None = None
        self._looks = 0
        self.frames = 0

    @torch.no_grad()
    def add(self, frames: Tensor) -> None:
        """Measure the next frames of every video, uint8 ``[B, n, H, W, 3]`` on any device.

        Raises:
            ValueError: if there are not as many videos as prompts, or no frame.
        """
        if frames.ndim != 5 or len(frames) != len(self._prompts) or not frames.shape[1]:
            raise ValueError(
                f"frames must be uint8 [{len(self._prompts)}, n, H, W, 3], got {list(frames.shape)}"
            )
        if self._first is None:
            self._first = frames[:, :1].clone()
            small = thumbnails(frames, THUMBNAILS).cpu().numpy()
            for video, row in zip(self._videos, small, strict=True):
                video.small = row
        for name, values in {**self._alone(frames), **self._neighbours(frames)}.items():
            for series, row in zip(self._series, values.float().cpu().tolist(), strict=True):
                series[name].extend(row)
        if self._judge is not None and frames.shape[1] >= CHUNK_FRAMES // 2:
            self._judged(self._judge, frames)
        for index in range(frames.shape[1]):
            if self.frames + index in self._keep:
                for video, frame in zip(self._videos, frames[:, index].cpu().numpy(), strict=True):
                    video.kept[self.frames + index] = frame.copy()
        self.frames += frames.shape[1]
        seen = frames if self._tail is None else torch.cat((self._tail, frames[:, -2:]), dim=1)
        self._tail = seen[:, -2:].clone()

    def finish(self) -> list[Measured]:
        """What was seen, one per video."""
        for video, series, features in zip(self._videos, self._series, self._features, strict=True):
            video.series = {name: np.array(row, np.float32) for name, row in series.items()}
            if self._judge is not None and features:
                video.features = np.array(features, np.float32).reshape(self._looks, -1)
        return self._videos

    def _alone(self, frames: Tensor) -> dict[str, Tensor]:
        """What a frame shows by itself, ``[B, n]`` each."""
        lab = frame_lab(frames)
        values = {
            "lightness": lab[..., 0],
            "a": lab[..., 1],
            "b": lab[..., 2],
            "saturation": frame_saturation(frames),
            "sharpness": 1e4 * frame_sharpness(frames),
            "blur": frame_blur(frames),
            "noise": frame_noise(frames),
        }
        if self._first is not None:
            values["away"] = difference(frames, self._first)
        for name, score in self._scores.items():
            values[name] = score(frames.flatten(0, 1)).view(frames.shape[:2])
        return values

    def _neighbours(self, frames: Tensor) -> dict[str, Tensor]:
        """What needs the frames before: two of the last chunk are remembered for it."""
        before = frames[:, :0] if self._tail is None else self._tail
        known = before.shape[1]
        both = torch.cat((before, frames), dim=1)
        count = frames.shape[1]
        empty = torch.full((len(frames), count), torch.nan, device=frames.device)
        step, motion, smooth = empty.clone(), empty.clone(), empty.clone()
        first = max(known, 1)
        if both.shape[1] > first:
            step[:, first - known :] = difference(both[:, first:], both[:, first - 1 : -1])
            motion[:, first - known :] = pair_motion(both[:, first - 1 :])
        # Odd frames are made again from the even ones around them. A value stands at the frame
        # after, which is when it is known.
        after = [
            index
            for index in range(max(known, 2), both.shape[1])
            if (self.frames + index - known) % 2 == 0
        ]
        if after:
            at = torch.tensor(after, device=frames.device)
            made = triple_smoothness(
                both[:, at - 2].flatten(0, 1),
                both[:, at - 1].flatten(0, 1),
                both[:, at].flatten(0, 1),
            )
            smooth[:, at - known] = made.view(len(frames), -1)
        return {"step": step, "amplitude": motion, "smoothness": smooth}

    def _judged(self, judge: SceneJudge, frames: Tensor) -> None:
        self._looks += 1
        rows = judge.features(frames).cpu().tolist()
        asked = any(prompt.scene is not None for prompt in self._prompts)
        readings = judge.read(frames) if asked else [None] * len(frames)
        for video, prompt, features, row, reading in zip(
            self._videos, self._prompts, self._features, rows, readings, strict=True
        ):
            features.extend(row)
            if reading is not None and prompt.scene is not None:
                video.verdicts.append(stated_verdicts(prompt.scene, reading, prompt.stated))
