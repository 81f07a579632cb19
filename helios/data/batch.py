"""What training eats."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips as latents, with their captions as token ids.

    Attributes:
        latents: ``[B, 16, 9 S, h, w]``, S sections of nine latent frames each; any float dtype.
        tokens: ``[B, L]`` int64 token ids of one wording of each caption, padded with 0.
    """

    latents: Tensor
    tokens: Tensor

    def __post_init__(self) -> None:
        """Check that both parts speak of the same clips."""
        if self.latents.ndim != 5 or self.tokens.ndim != 2:
            raise ValueError("latents must be [B, C, T, h, w] and tokens [B, L]")
        if len(self.latents) != len(self.tokens):
            raise ValueError(f"{len(self.latents)} clips but {len(self.tokens)} captions")

    def __len__(self) -> int:
        """Clips in the batch."""
        return len(self.latents)

    @property
    def mask(self) -> Tensor:
        """``[B, L]`` int64, 1 where ``tokens`` is not padding."""
        return (self.tokens != 0).long()
