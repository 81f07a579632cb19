"""One stream of a worker: a session, its encoder, and how far it may run ahead."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from helios.geometry import CHUNK_FRAMES
from helios.media import FragmentEncoder

if TYPE_CHECKING:
    from helios.pipeline import Chunk, Session

__all__ = ["Stream", "keep_for", "thumbnail"]

MOST_WAITING = 2
"""Encoded chunks that nobody has taken yet; then the stream pauses."""
MOST_BORDERS = 400
THUMBNAIL = (160, 160)


@dataclass(kw_only=True, eq=False)
class Stream:
    """What the engine turns over: all of it is touched by the engine's thread only.

    Attributes:
        name: what the front process calls it.
        session: makes the chunks.
        encoder: makes them fragments.
        loras: adapters in force, by name.
        waiting: chunks made and not yet taken.
        until: the last chunk that may be made; none: no such limit.
        landing: a live prompt and the chunk it lands in.
        ended: complete or stopped, until it is extended.
        cancelled: whether the chunk being made is not wanted any more.
    """

    name: str
    session: Session
    encoder: FragmentEncoder
    loras: dict[str, float] = field(default_factory=dict)
    waiting: int = 0
    until: int | None = None
    landing: tuple[str, int, int] | None = None
    ended: bool = False
    cancelled: bool = False

    @property
    def ready(self) -> bool:
        """Whether its next chunk may be made now."""
        if self.ended or self.cancelled or self.waiting >= MOST_WAITING:
            return False
        return self.until is None or self.session.index <= self.until

    @property
    def num_frames(self) -> int | None:
        """Length of the whole video; none: endless."""
        count: int | None = self.session.settings["num_frames"]
        return count

    @property
    def made(self) -> int:
        """Frames of the video so far."""
        count = self.session.index * CHUNK_FRAMES
        return count if self.num_frames is None else min(count, self.num_frames)

    @property
    def complete(self) -> bool:
        """Whether the video has its whole length."""
        return self.num_frames is not None and self.made == self.num_frames

    def prompt(
        self, text: str, transition: int, chunk: int | None = None
    ) -> tuple[int, str | None]:
        """Take a live prompt; the chunk it lands in and the prompt it replaced before its turn.

        The same prompt again is only moved.
        """
        lands = self.session.prompt(text, transition, chunk=chunk)
        before = self.landing
        self.landing = (text, lands, transition)
        return lands, None if before is None or before[0] == text else before[0]

    def landed(self, chunk: Chunk) -> dict[str, Any] | None:
        """What to say if ``chunk`` is the first with the live prompt."""
        if self.landing is None or chunk.index < self.landing[1]:
            return None
        text, lands, transition = self.landing
        self.landing = None
        return {"prompt": text, "chunk": lands, "transition_chunks": transition}

    def restart_at(self, chunk: int) -> None:
        """Number frames from the beginning of ``chunk``."""
        self.encoder.frames = chunk * CHUNK_FRAMES


def keep_for(height: int, width: int, budget: int) -> int:
    """Borders a session can keep in ``budget`` bytes: 20 latent frames of float32 each."""
    each = 20 * 16 * (height // 8) * (width // 8) * 4
    return max(8, min(MOST_BORDERS, budget // each))


def thumbnail(chunk: Chunk) -> str:
    """A small JPEG of the middle of the chunk, as a data URL."""
    from PIL import Image

    image = Image.fromarray(chunk.frames[len(chunk.frames) // 2])
    image.thumbnail(THUMBNAIL)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
