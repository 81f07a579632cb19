"""What training eats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Batch", "Leg", "Trajectories"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips as latents, with their captions: as token ids to be read, or read already.

    Attributes:
        latents: ``[B, 16, 9 S, h, w]``, S sections of nine latent frames each; any float dtype.
        tokens: ``[B, L]`` int64 token ids of one wording of each caption, padded with 0.
        text: ``[B, L, D]`` embeddings of the captions, in place of ``tokens``; any float dtype.
    """

    latents: Tensor
    tokens: Tensor | None = None
    text: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that both parts speak of the same clips."""
        captions = [part for part in (self.tokens, self.text) if part is not None]
        if len(captions) != 1:
            raise ValueError("a batch has either tokens or text")
        if self.latents.ndim != 5 or captions[0].ndim != (2 if self.text is None else 3):
            raise ValueError("latents must be [B, C, T, h, w], tokens [B, L] or text [B, L, D]")
        if len(self.latents) != len(captions[0]):
            raise ValueError(f"{len(self.latents)} clips but {len(captions[0])} captions")

    def __len__(self) -> int:
        """Clips in the batch."""
        return len(self.latents)


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What a teacher passed through in one stage of one section (training specification, 5.1).

    Attributes:
        states: ``[B, p + 1, C, 9, h, w]``: the sample before each of p few-step levels, and where
            the stage ended; any float dtype.
        sigmas: the p local noise levels.
        timesteps: what a few-step sampler tells the network there, p numbers.
    """

    states: Tensor
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that every level has its state."""
        points = len(self.sigmas)
        if len(self.timesteps) != points or self.states.shape[1] != points + 1:
            raise ValueError(
                f"{points} levels and {len(self.timesteps)} timesteps do not fit states "
                f"{tuple(self.states.shape)}"
            )


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Whole videos as a teacher made them, section by section, stage by stage.

    Attributes:
        text: ``[B, L, D]`` embeddings of the captions.
        sections: of each section its stages, coarsest first.
    """

    text: Tensor
    sections: tuple[tuple[Leg, ...], ...]

    def __len__(self) -> int:
        """Videos in the batch."""
        return len(self.text)

    def tensors(self) -> dict[str, Tensor]:
        """As files hold them: one row for each video."""
        named = {
            f"section{s}.stage{k}": leg.states
            for s, legs in enumerate(self.sections)
            for k, leg in enumerate(legs)
        }
        return {"text": self.text, **named}

    def levels(self) -> list[list[dict[str, list[float]]]]:
        """Levels and timesteps of every leg, ready for JSON."""
        return [
            [{"sigmas": list(leg.sigmas), "timesteps": list(leg.timesteps)} for leg in legs]
            for legs in self.sections
        ]

    @classmethod
    def restore(
        cls,
        tensors: Mapping[str, Tensor],
        levels: list[list[dict[str, list[float]]]],
    ) -> Trajectories:
        """From what `tensors` and `levels` gave."""
        sections = tuple(
            tuple(
                Leg(
                    states=tensors[f"section{s}.stage{k}"],
                    sigmas=tuple(level["sigmas"]),
                    timesteps=tuple(level["timesteps"]),
                )
                for k, level in enumerate(legs)
            )
            for s, legs in enumerate(levels)
        )
        return cls(text=tensors["text"], sections=sections)
