"""What enters the pipeline and what leaves it: plain values, checked at the door.

Everything that can be refused without a model is refused when a ``Request`` is made; what depends
on the checkpoint (sizes, samplers) is refused by ``GenerationConfig.resolve`` before any work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from helios.conditioning import START_NOISE, PromptTrack, check_prompt
from helios.diffusion import CFG, CFGZero, Flat, Guidance, Plan, Pyramid, ScheduleConfig
from helios.errors import InputError
from helios.geometry import CHUNK_FRAMES, FPS, check_size, chunk_count
from helios.history import DriftConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_FRAMES",
    "Chunk",
    "GenerationConfig",
    "Request",
    "Resolved",
    "Video",
]

Prompt: TypeAlias = str | Sequence[tuple[int, str]]
Media: TypeAlias = "str | Path | NDArray[np.uint8] | Any"
Noise: TypeAlias = tuple[float, float]

MAX_FRAMES = 10_000_000
"""Longest video of known length (over four days at 24 frames a second)."""


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _number(name: str, value: object, low: float, high: float) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")


def _noise(name: str, value: object) -> None:
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} must be a pair (lowest, highest), got {value!r}")
    for part in value:
        _number(name, part, 0.0, 1.0)
    if value[0] > value[1]:
        raise ValueError(f"{name} must not fall, got {value!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One video to make. Whatever is not given comes from the checkpoint.

    Attributes:
        prompt: what the video shows, or a list of ``(start_chunk, text)``, the first at chunk 0.
        negative_prompt: what guidance moves away from; the empty text if not given.
        image: start image (path or ``uint8 [H, W, 3]``); it is not part of the video.
        video: video to continue (path or ``uint8 [T, H, W, 3]``); it is not part of the
            new one.
        height, width: pixels; multiples of 16, with three scales of 64.
        num_frames: frames to make, exactly; not given: endless in ``stream``, the checkpoint's
            own length in ``pipe(...)``.
        seconds: the same in seconds of playback, rounded to the nearest frame.
        fps: playback rate only; it does not change what is generated.
        seed: the same seed gives the same frames; a random one is chosen and recorded if neither
            ``seed`` nor ``generator`` is given.
        generator: a generator on the pipeline's device, used as it stands.
        num_videos: how many; video ``i`` is what ``seed + i`` alone gives.
        steps: denoising steps: a number for the flat sampler, one per scale for the pyramid.
        guidance_scale: strength of the prompt; at most 1 means no guidance.
        motion: 0 to 1, how freely the video leaves its start image or video: the noise on it is
            ``2 * motion`` times the usual, and above one half the anchor moves to the second chunk.
        image_noise, video_noise: the ranges that noise is drawn from, instead of ``motion``.
        amplify_first_chunk: twice the steps for chunk 0 (few-step checkpoints).
        shift: ``"published"`` or ``"consistent"`` time shift; the checkpoint's if not given.
        prompt_embeds, negative_prompt_embeds: encoded texts ``[L, D]`` instead of texts.
        transition_chunks: chunks in which one prompt passes into the next; 0 is a cut.
        callback: called with each chunk.
        compat: ``"diffusers"`` rounds where its pipelines round, with its shift and its way of
            fitting a start image or video, so that the same seed gives what it gives; not given:
            the sample keeps float32 between the steps.
        anti_drift: whether a chunk that drifts off is kept in the history with noise, so that the
            next ones lean on it less: True, or a ``DriftConfig``. What was measured is in each
            chunk's timings.

    Raises:
        ValueError: naming the argument, its value and what is allowed; ``InputError`` for texts.
    """

    prompt: Prompt | None = None
    negative_prompt: str | None = None
    image: Media | None = None
    video: Media | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    seconds: float | None = None
    fps: int | None = None
    seed: int | None = None
    generator: torch.Generator | None = None
    num_videos: int = 1
    steps: int | tuple[int, ...] | None = None
    guidance_scale: float | None = None
    motion: float | None = None
    image_noise: Noise | None = None
    video_noise: Noise | None = None
    amplify_first_chunk: bool | None = None
    transition_chunks: int = 0
    anti_drift: bool | DriftConfig | Mapping[str, float] = False
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    callback: Callable[[Chunk], None] | None = None
    shift: str | None = None
    compat: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no checkpoint could make."""
        self._check_text()
        self._check_numbers()
        self._check_pairs()
        DriftConfig.make(self.anti_drift)
        if self.compat not in (None, "diffusers"):
            raise ValueError(f'compat must be "diffusers" or left out, got {self.compat!r}')
        if self.shift not in (None, "published", "consistent"):
            raise ValueError(f'shift must be "published" or "consistent", got {self.shift!r}')
        if self.compat is not None and self.shift == "consistent":
            raise ValueError('shift="consistent" is not what compat="diffusers" computes: drop one')

    def _check_text(self) -> None:
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise InputError("give either a prompt or prompt_embeds")
        if self.prompt is not None:
            PromptTrack.parse(self.prompt)
        if self.negative_prompt is not None:
            if self.negative_prompt_embeds is not None:
                raise ValueError("give either negative_prompt or negative_prompt_embeds, not both")
            check_prompt(self.negative_prompt, name="negative prompt", empty=True)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, Tensor)
                and value.ndim in (2, 3)
                and value.shape[:-2] in ((), (1,))
            ):
                raise ValueError(f"{name} must be a tensor [L, D] or [1, L, D]")

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("height", None, None),
            ("width", None, None),
            ("num_frames", 1, MAX_FRAMES),
            ("fps", 1, 240),
            ("seed", 0, 2**63 - 1),
            ("num_videos", 1, 10_000),
            ("transition_chunks", 0, 1000),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            if low is None or high is None:
                # Any whole number: what is legal depends on the sampler, and the refusal there
                # offers the nearest size.
                _whole(name, value, -(2**31), 2**31)
            else:
                _whole(name, value, low, high)
        if self.seconds is not None:
            _number("seconds", self.seconds, 0.0, MAX_FRAMES / FPS)
        if self.guidance_scale is not None:
            _number("guidance_scale", self.guidance_scale, 0.0, 100.0)
        if self.motion is not None:
            _number("motion", self.motion, 0.0, 1.0)
        for name in ("image_noise", "video_noise"):
            if getattr(self, name) is not None:
                _noise(name, getattr(self, name))
        if self.steps is not None:
            for count in self.steps if isinstance(self.steps, Sequence) else (self.steps,):
                _whole("steps", count, 1, 1000)

    def _check_pairs(self) -> None:
        for one, other in (
            ("num_frames", "seconds"),
            ("image", "video"),
            ("seed", "generator"),
            ("motion", "image_noise"),
            ("motion", "video_noise"),
        ):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"give either {one} or {other}, not both")
        if self.generator is not None and self.num_videos > 1:
            raise ValueError("num_videos > 1 needs a seed, not a generator")
        if self.seed is not None and self.seed + self.num_videos > 2**63:
            raise ValueError(f"seed={self.seed} leaves no room for {self.num_videos} videos")

    @classmethod
    def make(cls, **values: Any) -> Request:
        """A request from loose values, such as a line of a batch file.

        Raises:
            ValueError: for a field that does not exist, with the nearest name.
        """
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"unknown field {name!r}{_nearest(name, known)}")
        return cls(**values)


def _nearest(name: str, known: set[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A request with every open choice made: what the pipeline runs and what a file records."""

    track: PromptTrack | None
    negative_prompt: str
    height: int
    width: int
    num_frames: int | None
    fps: int
    plan: Plan
    guidance: Guidance | None
    transition_chunks: int
    schedule: ScheduleConfig
    image_noise: Noise
    video_noise: Noise
    moves_anchor: bool
    anti_drift: DriftConfig | None
    compat: str | None = None

    @property
    def chunks(self) -> int | None:
        """Chunks to make; none if endless."""
        return None if self.num_frames is None else chunk_count(self.num_frames)

    def plan_of(self, chunk: int) -> Plan:
        """The sampler of ``chunk``: only the first one may be amplified."""
        if chunk > 0 and isinstance(self.plan, Pyramid) and self.plan.amplify:
            return replace(self.plan, amplify=False)
        return self.plan

    def frames_of(self, chunk: int) -> int:
        """Frames of ``chunk`` that belong to the video: 33, fewer in the last one."""
        if self.num_frames is None:
            return CHUNK_FRAMES
        return min(CHUNK_FRAMES, self.num_frames - chunk * CHUNK_FRAMES)

    def settings(self) -> dict[str, Any]:
        """JSON-ready values, in the names of ``Request``."""
        steps = self.plan.steps
        prompts: Any = None if self.track is None else list(self.track.changes)
        return {
            "prompt": prompts[0][1] if prompts and len(prompts) == 1 else prompts,
            "negative_prompt": self.negative_prompt,
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "fps": self.fps,
            "steps": steps if isinstance(steps, int) else list(steps),
            "solver": self.plan.solver,
            "guidance_scale": 1.0 if self.guidance is None else self.guidance.scale,
            "amplify_first_chunk": isinstance(self.plan, Pyramid) and self.plan.amplify,
            "transition_chunks": self.transition_chunks,
            "shift": "published" if self.schedule.lag else "consistent",
            "compat": self.compat,
            "image_noise": list(self.image_noise),
            "video_noise": list(self.video_noise),
            "anti_drift": False if self.anti_drift is None else asdict(self.anti_drift),
        }


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What a checkpoint makes when it is not told otherwise.

    Attributes:
        height, width: the size it was trained at.
        num_frames: length of ``pipe(prompt)``.
        fps: playback rate.
        plan: sampler and steps.
        guidance: how the prompt is strengthened; none: not at all.
        negative_prompt: what guidance moves away from.
        distilled: guidance is part of the weights, so none may be added (specification 9.2, B1).
    """

    height: int = 384
    width: int = 640
    num_frames: int = 132
    fps: int = FPS
    plan: Plan = field(default_factory=lambda: Flat(steps=50))
    guidance: Guidance | None = field(default_factory=lambda: CFG(5.0))
    negative_prompt: str = ""
    distilled: bool = False

    def __post_init__(self) -> None:
        """Check the values once."""
        check_size(self.height, self.width, self.scales)
        _whole("num_frames", self.num_frames, 1, MAX_FRAMES)
        _whole("fps", self.fps, 1, 240)
        if self.distilled and self.guidance is not None:
            raise ValueError("a distilled checkpoint has no guidance")

    @property
    def scales(self) -> int:
        """Scales the sampler goes through: 1 or 3."""
        return len(self.plan.steps) if isinstance(self.plan, Pyramid) else 1

    def resolve(
        self, request: Request, schedule: ScheduleConfig, *, endless: bool = False
    ) -> Resolved:
        """Fill the gaps of ``request`` and refuse what this checkpoint cannot make.

        Args:
            request: what is asked.
            schedule: the checkpoint's noise schedule.
            endless: what a missing length means: no end, or this checkpoint's own length.

        Raises:
            ValueError: naming the argument, its value and what is allowed.
        """
        height = self.height if request.height is None else request.height
        width = self.width if request.width is None else request.width
        plan = self._plan(request)
        guidance = self._guidance(request)
        if isinstance(plan, Pyramid) and not isinstance(guidance, CFGZero):
            # Skipped first steps are part of CFG-Zero* (specification, section 6.7).
            plan = replace(plan, zero_init=0)
        check_size(height, width, len(plan.steps) if isinstance(plan, Pyramid) else 1)
        fps = request.fps or self.fps
        shift = "published" if request.compat else request.shift
        noise = START_NOISE
        if request.motion is not None:
            noise = (noise[0] * 2 * request.motion, noise[1] * 2 * request.motion)
        return Resolved(
            track=(
                None
                if request.prompt is None
                else PromptTrack.parse(request.prompt, request.transition_chunks)
            ),
            negative_prompt=(
                self.negative_prompt if request.negative_prompt is None else request.negative_prompt
            ),
            height=height,
            width=width,
            num_frames=self._length(request, fps, endless),
            fps=fps,
            plan=plan,
            guidance=guidance,
            transition_chunks=request.transition_chunks,
            schedule=schedule if shift is None else replace(schedule, lag=shift == "published"),
            image_noise=request.image_noise or noise,
            video_noise=request.video_noise or noise,
            moves_anchor=request.motion is not None and request.motion > 0.5,
            anti_drift=DriftConfig.make(request.anti_drift),
            compat=request.compat,
        )

    def _length(self, request: Request, fps: int, endless: bool) -> int | None:
        if request.seconds is not None:
            count = round(request.seconds * fps)
            if not 1 <= count <= MAX_FRAMES:
                raise ValueError(
                    f"seconds={request.seconds:g} is {count} frames at {fps} frames a second; "
                    f"1 to {MAX_FRAMES} are possible"
                )
            return count
        if request.num_frames is None and not endless:
            return self.num_frames
        return request.num_frames

    def _plan(self, request: Request) -> Plan:
        steps = request.steps
        if isinstance(self.plan, Pyramid):
            plan = self.plan
            if steps is not None:
                if isinstance(steps, int) or len(steps) != self.scales:
                    raise ValueError(
                        f"steps={steps!r} does not fit: this checkpoint samples {self.scales} "
                        f"scales, so give {self.scales} numbers such as {self.plan.steps}"
                    )
                plan = replace(plan, steps=tuple(steps))
            if request.amplify_first_chunk is not None:
                plan = replace(plan, amplify=request.amplify_first_chunk)
            return plan
        if request.amplify_first_chunk:
            raise ValueError("amplify_first_chunk needs a checkpoint that samples three scales")
        if steps is None:
            return self.plan
        if not isinstance(steps, int):
            raise ValueError(
                f"steps={steps!r} does not fit: this checkpoint samples one scale, "
                f"so give one number such as {self.plan.steps}"
            )
        return replace(self.plan, steps=steps)

    def _guidance(self, request: Request) -> Guidance | None:
        scale = request.guidance_scale
        if scale is None:
            return self.guidance
        if scale <= 1:
            return None
        if self.distilled:
            raise ValueError(
                f"guidance_scale={scale:g} is not possible: this checkpoint is distilled with its "
                "guidance built in; leave it out or give 1"
            )
        return CFG(scale) if self.guidance is None else replace(self.guidance, scale=scale)

    def to_json(self) -> dict[str, Any]:
        """JSON form, read back by ``from_json``."""
        guidance = None
        if self.guidance is not None:
            kind = "cfg_zero" if isinstance(self.guidance, CFGZero) else "cfg"
            guidance = {"kind": kind, "scale": self.guidance.scale}
        plan: dict[str, Any] = {"solver": self.plan.solver}
        if isinstance(self.plan, Pyramid):
            plan["steps"] = list(self.plan.steps)
            plan |= {"zero_init": self.plan.zero_init, "amplify": self.plan.amplify}
        else:
            plan["steps"] = self.plan.steps
        return {
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "fps": self.fps,
            "plan": plan,
            "guidance": guidance,
            "negative_prompt": self.negative_prompt,
            "distilled": self.distilled,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GenerationConfig:
        """The value that ``to_json`` gave.

        Raises:
            ValueError: for an unknown or ill-typed entry.
        """
        known = {item.name for item in fields(cls)}
        for name in value:
            if name not in known:
                raise ValueError(f"unknown field {name!r}{_nearest(name, known)}")
        values = dict(value)
        try:
            if "plan" in values:
                plan = dict(values["plan"])
                steps = plan.pop("steps")
                several = isinstance(steps, list)
                values["plan"] = (
                    Pyramid(steps=tuple(steps), **plan) if several else Flat(steps=steps, **plan)
                )
            if values.get("guidance") is not None:
                guidance = dict(values["guidance"])
                kind = {"cfg": CFG, "cfg_zero": CFGZero}[guidance["kind"]]
                values["guidance"] = kind(guidance["scale"])
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"generation settings are malformed: {error}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """One piece of a video, as it leaves the pipeline.

    Attributes:
        index: 0 for the first.
        frames: ``uint8 [33, H, W, 3]``; the last chunk of a video of known length may have fewer.
        latents: ``float32 [16, 9, h, w]`` on the CPU, clean; always the whole chunk.
        prompt: the text in force, none if embeddings were given.
        timings: seconds spent: ``sample``, ``decode``, ``total``. With anti-drift also how far off
            the chunk is, ``drift_mean`` and ``drift_variance``, and the noise level it is kept in
            the history with, ``drift_noise``: above 0 where anti-drift was triggered.
    """

    index: int
    frames: NDArray[np.uint8]
    latents: Tensor
    prompt: str | None
    timings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A finished video.

    Attributes:
        frames: ``uint8 [T, H, W, 3]``.
        latents: ``float32 [16, t, h, w]`` on the CPU: nine for each generated chunk, nothing of
            the start image or video.
        fps: playback rate.
        settings: what made it, ready for JSON.
    """

    frames: NDArray[np.uint8]
    latents: Tensor
    fps: int
    settings: Mapping[str, Any]

    def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Write an MP4 (H.264) with the settings embedded, whole or not at all.

        Raises:
            OSError: if ``path`` cannot be written, or exists and ``overwrite`` is false.
        """
        from helios.media import VideoWriter

        _, height, width, _ = self.frames.shape
        target = Path(path)
        with VideoWriter(
            target,
            width,
            height,
            self.fps,
            dict(self.settings),
            overwrite,
            fragment_frames=CHUNK_FRAMES,
        ) as writer:
            writer.write(self.frames)
        return target
