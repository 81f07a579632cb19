"""Which prompt holds at which chunk, and how one passes into the next.

Source: specification "model and sampling", section 7.8. Two flaws of the public code have no place
to live here: the last prompt holds for ever (instead of the first coming back), and the number of
chunks is none of a track's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from helios.errors import InputError
from helios.words import MAX_PROMPT, check_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_PROMPT", "Blend", "PromptTrack", "check_prompt"]


@dataclass(frozen=True)
class Blend:
    """A mixture of prompts.

    The embeddings are those of the first part; each further part is then approached linearly:
    ``(1 - weight) * so far + weight * its own``. Two parts are an ordinary transition; more arise
    when a live prompt interrupts one.

    Attributes:
        parts: ``(prompt, weight)``; the weight of the first has no effect and is 1.
    """

    parts: tuple[tuple[str, float], ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt of the mixture once."""
        return tuple(dict.fromkeys(text for text, _ in self.parts))

    def towards(self, text: str, weight: float) -> Blend:
        """The mixture moved by ``weight`` (0 to 1) towards ``text``.

        Parts whose share sinks below one in 4,096 are dropped, so a mixture stays short however
        often it is interrupted.
        """
        if weight <= 0:
            return self
        if weight >= 1:
            return Blend(((text, 1.0),))
        left = 1.0 - weight
        kept: list[tuple[str, float]] = [(text, weight)]
        for index in range(len(self.parts) - 1, -1, -1):
            own, share = self.parts[index]
            if left < _LEAST_SHARE:
                break
            kept.append((own, share))
            left *= 1.0 - share if index else 1.0
        kept.reverse()
        return Blend(((kept[0][0], 1.0), *kept[1:]))


_LEAST_SHARE = 2.0**-12
"""Far below what a mixture of bfloat16 embeddings can show."""


@dataclass(frozen=True)
class PromptTrack:
    """The prompts of a video, each from a chunk on until the next one takes over.

    Attributes:
        changes: ``(first chunk, prompt)`` in rising order; the first is at chunk 0.
        transitions: for each change the chunks it takes; 0 and 1 are cuts. Empty: all are cuts.
    """

    changes: tuple[tuple[int, str], ...]
    transitions: tuple[int, ...] = ()

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
        transitions = tuple(self.transitions) or (0,) * len(checked)
        if len(transitions) != len(checked):
            raise ValueError(f"transitions must be {len(checked)} numbers, got {transitions}")
        for length in transitions:
            _check_transition(length)
        object.__setattr__(self, "transitions", transitions)

    @classmethod
    def parse(
        cls, prompt: str | Sequence[tuple[int, str]], transition_chunks: int = 0
    ) -> PromptTrack:
        """The track of one prompt, or of a list of ``(first chunk, prompt)``.

        Args:
            prompt: what the person gave.
            transition_chunks: chunks each change takes. A prompt that holds for fewer chunks
                passes in as many as it has.

        Raises:
            InputError: naming what is wrong: no prompt at chunk 0, starts that do not rise, a
                prompt that is empty or not text.
            ValueError: if ``transition_chunks`` is not a whole number from 0.
        """
        _check_transition(transition_chunks)
        if isinstance(prompt, str):
            return cls(((0, prompt),))
        try:
            changes = tuple((start, text) for start, text in prompt)
        except (TypeError, ValueError):
            raise InputError(
                f"prompt must be text or a list of (start_chunk, text), got {type(prompt).__name__}"
            ) from None
        track = cls(changes)
        starts = [start for start, _ in track.changes]
        held = [after - start for start, after in pairwise(starts)]
        lengths = (0, *(min(transition_chunks, count) for count in held[1:]), transition_chunks)
        return cls(track.changes, lengths[: len(starts)])

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt once, in order of appearance: what has to be encoded."""
        return tuple(dict.fromkeys(text for _, text in self.changes))

    def at(self, chunk: int) -> str:
        """The prompt in force at ``chunk`` (from 0)."""
        return self.changes[self._index(chunk)][1]

    def changed(self, chunk: int, text: str, transition_chunks: int = 0) -> PromptTrack:
        """The track with ``text`` from ``chunk`` on, instead of whatever was to come there.

        Raises:
            InputError: for an unusable prompt.
            ValueError: if ``transition_chunks`` is not a whole number from 0.
        """
        _check_transition(transition_chunks)
        kept = sum(start < chunk for start, _ in self.changes)
        length = transition_chunks if kept else 0
        return PromptTrack(
            (*self.changes[:kept], (chunk, check_prompt(text))), (*self.transitions[:kept], length)
        )

    def until(self, chunk: int) -> PromptTrack:
        """The track without what was to come from ``chunk`` on; the first prompt always stays."""
        kept = max(1, sum(start < chunk for start, _ in self.changes))
        return PromptTrack(self.changes[:kept], self.transitions[:kept])

    def since(self, chunk: int) -> PromptTrack:
        """The same from ``chunk`` on, without the changes that no longer show there.

        An endless stream with live prompts thus never carries its whole past along.
        """
        first = 0
        for index in range(1, self._index(chunk) + 1):
            start, length = self.changes[index][0], self.transitions[index]
            after = self.changes[index + 1][0] if index + 1 < len(self.changes) else chunk + 1
            if start + max(length, 1) <= min(after, chunk + 1):
                first = index
        if first == 0:
            return self
        changes = ((0, self.changes[first][1]), *self.changes[first + 1 :])
        return PromptTrack(changes, (0, *self.transitions[first + 1 :]))

    def blend(self, chunk: int) -> Blend:
        """The mixture of prompts at ``chunk``.

        The first chunk of a transition still shows what was there before and the last one the new
        prompt, with equal steps between (7.8). A change during a transition starts from the
        mixture shown last, so nothing jumps.
        """
        last = self._index(chunk)
        shown = Blend(((self.changes[0][1], 1.0),))
        for index in range(1, last + 1):
            start, text = self.changes[index]
            end = chunk if index == last else self.changes[index + 1][0] - 1
            step, length = end - start, self.transitions[index]
            shown = shown.towards(text, 1.0 if length < 2 else step / (length - 1))
        return shown

    def _index(self, chunk: int) -> int:
        if chunk < 0:
            raise ValueError(f"chunk must be 0 or more, got {chunk}")
        return max(i for i, (start, _) in enumerate(self.changes) if start <= chunk)


def _check_transition(length: object) -> None:
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= 1000:
        raise ValueError(f"transition_chunks must be a whole number from 0 to 1000, got {length!r}")
