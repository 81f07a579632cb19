"""Which prompt holds at which chunk, and how one passes into the next.

Source: specification "model and sampling", section 7.8. Two flaws of the public code have no place
to live here: the last prompt holds for ever (instead of the first coming back), and the number of
chunks is none of a track's business.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_PROMPT", "Blend", "PromptTrack", "check_prompt"]

MAX_PROMPT = 4096
"""Code points a prompt may have, normalised and trimmed."""


def check_prompt(text: str, *, name: str = "prompt", empty: bool = False) -> str:
    """The prompt, trimmed, in normal form C and with plain line ends, if it can be used.

    Args:
        text: as the person wrote it.
        name: what to call it in the error.
        empty: whether it may be empty, as a negative prompt may.

    Raises:
        InputError: if it is not text, empty, longer than 4,096 code points, or holds a control
            character or half a surrogate pair.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} must be text, got {type(text).__name__}")
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()
    if not text and not empty:
        raise InputError(f"{name} is empty; describe what the video shall show")
    if len(text) > MAX_PROMPT:
        raise InputError(f"{name} has {len(text):,} characters; at most {MAX_PROMPT:,} are read")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n":
            raise InputError(
                f"{name} holds the character U+{ord(character):04X}, which is not text; remove it"
            )
    return text


@dataclass(frozen=True)
class Blend:
    """A mixture of two prompts: the embeddings are ``(1 - weight) * old + weight * new``.

    Attributes:
        old: the prompt that is left.
        new: the prompt in force; equal to ``old`` where nothing changes.
        weight: share of ``new``, 0 to 1.
    """

    old: str
    new: str
    weight: float


@dataclass(frozen=True)
class PromptTrack:
    """The prompts of a video, each from a chunk on until the next one takes over.

    Attributes:
        changes: ``(first chunk, prompt)`` in rising order; the first is at chunk 0.
    """

    changes: tuple[tuple[int, str], ...]

    def __post_init__(self) -> None:
        """Refuse a track with holes, disorder or unusable prompts."""
        if not self.changes:
            raise InputError("the prompt track is empty; give at least one prompt")
        checked: list[tuple[int, str]] = []
        for index, (start, text) in enumerate(self.changes):
            if isinstance(start, bool) or not isinstance(start, int):
                raise InputError(f"prompt {index} starts at chunk {start!r}; whole numbers only")
            if index == 0 and start != 0:
                raise InputError(f"the first prompt must start at chunk 0, got {start}")
            if index > 0 and start <= checked[-1][0]:
                raise InputError(
                    f"prompt {index} starts at chunk {start}, not after chunk {checked[-1][0]}; "
                    "starts must rise"
                )
            name = "prompt" if len(self.changes) == 1 else f"prompt {index}"
            checked.append((start, check_prompt(text, name=name)))
        object.__setattr__(self, "changes", tuple(checked))

    @classmethod
    def parse(cls, prompt: str | Sequence[tuple[int, str]]) -> PromptTrack:
        """The track of one prompt, or of a list of ``(first chunk, prompt)``.

        Raises:
            InputError: naming what is wrong: no prompt at chunk 0, starts that do not rise, a
                prompt that is empty or not text.
        """
        if isinstance(prompt, str):
            return cls(((0, prompt),))
        try:
            changes = tuple((start, text) for start, text in prompt)
        except (TypeError, ValueError):
            raise InputError(
                f"prompt must be text or a list of (start_chunk, text), got {type(prompt).__name__}"
            ) from None
        return cls(changes)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt once, in order of appearance: what has to be encoded."""
        return tuple(dict.fromkeys(text for _, text in self.changes))

    def at(self, chunk: int) -> str:
        """The prompt in force at ``chunk`` (from 0)."""
        return self.changes[self._index(chunk)][1]

    def blend(self, chunk: int, transition_chunks: int = 0) -> Blend:
        """The mixture at ``chunk`` when a change takes ``transition_chunks`` chunks.

        The first chunk of a transition still shows the old prompt and the last one the new, with
        equal steps between. A prompt that holds for fewer chunks passes in as many as it has; a
        transition of one chunk, or none, is a cut.

        Raises:
            ValueError: if ``transition_chunks`` is negative.
        """
        if transition_chunks < 0:
            raise ValueError(f"transition_chunks must be 0 or more, got {transition_chunks}")
        index = self._index(chunk)
        start, new = self.changes[index]
        if index == 0:
            return Blend(new, new, 1.0)
        old, length = self.changes[index - 1][1], transition_chunks
        if index + 1 < len(self.changes):
            length = min(length, self.changes[index + 1][0] - start)
        step = chunk - start
        if step >= length or length < 2:
            return Blend(new, new, 1.0)
        return Blend(old, new, step / (length - 1))

    def _index(self, chunk: int) -> int:
        if chunk < 0:
            raise ValueError(f"chunk must be 0 or more, got {chunk}")
        return max(i for i, (start, _) in enumerate(self.changes) if start <= chunk)
