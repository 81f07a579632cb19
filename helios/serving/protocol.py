"""Every message of the wire, checked at the border; ``docs/protocol.md`` is the page about them.

What comes in is strict: unknown fields, numbers as text and true as 1 are refused. What is legal
for a checkpoint (sizes, steps) only its worker knows; here are the bounds of a server
(specification "reliability", section 3.3).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from helios.geometry import CHUNK_FRAMES, FPS
from helios.serving.dialects import translated
from helios.words import check_prompt

__all__ = [
    "MAX_AREA",
    "MAX_JOB_FRAMES",
    "OPENAI_SIZES",
    "SUBPROTOCOL",
    "ClientMessage",
    "CreateVideo",
    "EditVideo",
    "ExtendVideo",
    "Fault",
    "Generation",
    "InputReference",
    "Lora",
    "RemixVideo",
    "SessionBranch",
    "SessionExtend",
    "SessionLora",
    "SessionPing",
    "SessionPlayed",
    "SessionPrompt",
    "SessionResume",
    "SessionSave",
    "SessionStart",
    "SessionStop",
    "Shots",
    "VideoReference",
    "client_message",
]

SUBPROTOCOL = "helios.v1"
MAX_JOB_FRAMES = 1452
MAX_AREA = 921_600
MAX_CHUNK = 10_000_000 // CHUNK_FRAMES
OPENAI_SIZES = ("720x1280", "1280x720", "1024x1792", "1792x1024")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _prompt_text(text: str) -> str:
    return check_prompt(text)


def _negative_text(text: str) -> str:
    return check_prompt(text, name="negative prompt", empty=True)


def _size(text: str) -> str:
    width, cross, height = text.partition("x")
    digits = cross and all(p.isascii() and p.isdigit() and len(p) <= 5 for p in (width, height))
    if not digits:
        raise ValueError("must be WIDTHxHEIGHT such as 640x384")
    if text not in OPENAI_SIZES:
        _sides(int(width), int(height))
    return text


def _sides(width: int, height: int) -> None:
    if not (128 <= width <= 1280 and 128 <= height <= 1280 and width * height <= MAX_AREA):
        raise ValueError(
            f"must be 128 to 1280 a side and at most {MAX_AREA:,} pixels, got {width}x{height}"
        )


def _seconds(value: Any) -> Any:
    """Seconds are text in OpenAI's shape; numbers are taken too."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise ValueError("must be a number of seconds") from None
        if len(value) > 32 or not math.isfinite(number):
            raise ValueError("must be a number of seconds")
        return number
    return value


def _number(value: Any) -> Any:
    """A whole number where a broken one is allowed, but never true or false."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _pairs(value: Any) -> Any:
    """JSON knows no tuples."""
    return [tuple(v) if isinstance(v, list) else v for v in value] if _is_list(value) else value


def _counts(value: Any) -> Any:
    return tuple(value) if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


PromptText: TypeAlias = Annotated[str, AfterValidator(_prompt_text)]
Float: TypeAlias = Annotated[float, BeforeValidator(_number)]
Chunk: TypeAlias = Annotated[int, Field(ge=0, le=MAX_CHUNK)]
Shots: TypeAlias = Annotated[
    list[tuple[Chunk, PromptText]], BeforeValidator(_pairs), Field(min_length=1, max_length=256)
]
StepCount: TypeAlias = Annotated[int, Field(ge=1, le=100)]
Steps: TypeAlias = (
    StepCount
    | Annotated[tuple[StepCount, ...], BeforeValidator(_counts), Field(min_length=1, max_length=8)]
)
Frames: TypeAlias = Annotated[int, Field(ge=1, le=10_000_000)]
Seconds: TypeAlias = Annotated[
    float, BeforeValidator(_number), BeforeValidator(_seconds), Field(gt=0, le=10_000_000 / FPS)
]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
Transition: TypeAlias = Annotated[int, Field(ge=0, le=1000)]
Ahead: TypeAlias = Annotated[int, Field(ge=1, le=64)]
SessionId: TypeAlias = Annotated[str, Field(pattern=r"^session_[0-9a-f]{32}$", max_length=48)]
VideoId: TypeAlias = Annotated[str, Field(pattern=r"^video_[0-9a-f]{32}$", max_length=48)]
FileId: TypeAlias = Annotated[str, Field(pattern=r"^file_[0-9a-f]{32}$", max_length=48)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=128)]


class Lora(_Strict):
    """An adapter of the server's list and how much it counts."""

    name: Name
    scale: Annotated[Float, Field(ge=-10, le=10)] = 1.0


class InputReference(_Strict):
    """What the video starts from: an upload, a finished video or a session's recording."""

    file_id: FileId | None = None
    video_id: VideoId | None = None
    session_id: SessionId | None = None
    image_url: Annotated[str, Field(max_length=96 << 20)] | None = None
    """A ``data:`` URL; no address is ever opened."""
    video_url: Annotated[str, Field(max_length=96 << 20)] | None = None
    """The same."""

    @model_validator(mode="after")
    def _one(self) -> InputReference:
        given = [value for value in self.__dict__.values() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of file_id, video_id, session_id, image_url and video_url"
            )
        return self


class Generation(_Strict):
    """What to make; whatever is absent comes from the checkpoint."""

    prompt: PromptText | Shots
    model: Name | None = None
    negative_prompt: Annotated[str, AfterValidator(_negative_text)] | None = None
    size: Annotated[str, AfterValidator(_size)] | None = None
    width: Annotated[int, Field(ge=128, le=1280)] | None = None
    height: Annotated[int, Field(ge=128, le=1280)] | None = None
    num_frames: Frames | None = None
    seconds: Seconds | None = None
    fps: Annotated[int, Field(ge=1, le=60)] | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    guidance_scale: Annotated[Float, Field(ge=0, le=20)] | None = None
    motion: Annotated[Float, Field(ge=0, le=1)] | None = None
    transition_chunks: Transition = 0
    anti_drift: bool = False
    amplify_first_chunk: bool | None = None
    shift: Literal["published", "consistent"] | None = None
    loras: Annotated[list[Lora], Field(max_length=16)] = []
    input_reference: InputReference | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Generation:
        if self.num_frames is not None and self.seconds is not None:
            raise ValueError("give either num_frames or seconds, not both")
        if self.size is not None and (self.width is not None or self.height is not None):
            raise ValueError("give either size, or width and height")
        if (self.width is None) != (self.height is None):
            raise ValueError("give width and height together")
        if self.width is not None and self.height is not None:
            _sides(self.width, self.height)
        return self


class CreateVideo(Generation):
    """``POST /v1/videos``; names of other servers are taken too, see ``dialects``."""

    _names = model_validator(mode="before")(translated)

    num_frames: Annotated[int, Field(ge=1, le=MAX_JOB_FRAMES)] | None = None
    seconds: (
        Annotated[
            float,
            BeforeValidator(_number),
            BeforeValidator(_seconds),
            Field(gt=0, le=MAX_JOB_FRAMES),
        ]
        | None
    ) = None


class RemixVideo(_Strict):
    """``POST /v1/videos/{id}/remix``: the same request with another prompt."""

    prompt: PromptText
    seed: Seed | None = None


class VideoReference(_Strict):
    """The finished video to extend or to edit."""

    id: VideoId


class EditVideo(RemixVideo):
    """``POST /v1/videos/edits``: the same, the video named in the body."""

    video: VideoReference


class ExtendVideo(_Strict):
    """``POST /v1/videos/extensions``: the video goes on; the result holds both parts."""

    video: VideoReference
    prompt: PromptText | None = None
    seconds: Seconds | None = None
    num_frames: Annotated[int, Field(ge=1, le=MAX_JOB_FRAMES)] | None = None
    seed: Seed | None = None


# ------------------------------------------------------------------------------ live, inwards


class _Message(_Strict):
    event_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class SessionStart(Generation):
    """A new session."""

    type: Literal["session.start"]
    event_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    ahead: Ahead | None = None


class SessionResume(_Message):
    """Takes up a session that was parked, saved or imported."""

    type: Literal["session.resume"]
    session: SessionId
    have: Chunk = 0
    chunk: Chunk | None = None
    num_frames: Frames | None = None
    ahead: Ahead | None = None


class SessionPrompt(_Message):
    """Another prompt, from the next chunk on or from a later one."""

    type: Literal["session.prompt", "session.interaction"]
    prompt: PromptText
    transition_chunks: Transition = 3
    chunk: Chunk | None = None


class SessionLora(_Message):
    """Other adapters, from the next chunk on."""

    type: Literal["session.lora"]
    loras: Annotated[list[Lora], Field(max_length=16)]


class SessionPlayed(_Message):
    """The chunk that plays now."""

    type: Literal["session.played"]
    chunk: Chunk


class SessionBranch(_Message):
    """A new session that goes on differently from the beginning of ``chunk``."""

    type: Literal["session.branch"]
    chunk: Chunk
    prompt: PromptText | None = None
    transition_chunks: Transition = 0
    seed: Seed | None = None


class SessionExtend(_Message):
    """A complete or stopped session goes on."""

    type: Literal["session.extend"]
    num_frames: Frames | None = None
    seconds: Seconds | None = None


class SessionSave(_Message):
    """Keeps a state on disk."""

    type: Literal["session.save"]
    chunk: Chunk | None = None
    name: Name | None = None


class SessionStop(_Message):
    """Ends the stream after the chunk being made."""

    type: Literal["session.stop"]


class SessionPing(_Message):
    """Asks for a sign of life."""

    type: Literal["session.ping"]


ClientMessage: TypeAlias = (
    SessionStart
    | SessionResume
    | SessionPrompt
    | SessionLora
    | SessionPlayed
    | SessionBranch
    | SessionExtend
    | SessionSave
    | SessionStop
    | SessionPing
)

_client: TypeAdapter[ClientMessage] = TypeAdapter(
    Annotated[ClientMessage, Field(discriminator="type")]
)


def client_message(value: Any) -> ClientMessage:
    """The message in parsed JSON.

    Raises:
        pydantic.ValidationError: for anything else.
    """
    return _client.validate_python(value)


class Fault(_Strict):
    """``POST /test/faults`` of a server that was started for tests."""

    kind: Literal[
        "out_of_memory",
        "non_finite",
        "error",
        "hang",
        "crash",
        "slow",
        "leak",
        "disk_full",
        "disk_free",
    ]
    after: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[Float, Field(ge=0, le=600)] = 0.0
    worker: Annotated[int, Field(ge=0, le=63)] = 0
