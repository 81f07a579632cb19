"""Latents to tokens and back: the older the frames, the coarser their patches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.history import HistoryWindow
from helios.model.config import TransformerConfig

__all__ = ["Patch", "Patches", "unpatch"]


class Patch(nn.Module):
    """A convolution whose stride is its kernel, computed as the matrix product that it is.

    The far ends of each axis are repeated to fill the last patch.
    """

    def __init__(self, channels: int, width: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        bound = (channels * math.prod(kernel)) ** -0.5
        self.weight = nn.Parameter(torch.empty(width, channels, *kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, h, w]`` to ``[B, tokens, D]``, columns fastest, then rows, then frames."""
        t, y, x_ = self.kernel
        missing = [-size % step for size, step in zip(x.shape[2:], self.kernel)]
        if any(missing):
            x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
        cells = x.unflatten(4, (-1, x_)).unflatten(3, (-1, y)).unflatten(2, (-1, t))
        # [B, C, T, t, Y, y, X, x] -> [B, T, Y, X, C, t, y, x]
        cells = cells.permute(0, 2, 4, 6, 1, 3, 5, 7)
        return self.embed(cells.flatten(4).flatten(1, 3))

    def embed(self, cells: Tensor) -> Tensor:
        """``[B, tokens, C * t * y * x]`` to ``[B, tokens, D]``."""
        return F.linear(cells, self.weight.flatten(1), self.bias)


class Patches(nn.Module):
    """The patchers of the noisy chunk and of the three ages of history (section 2.3)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        channels, width = config.in_channels, config.width
        self.noisy = Patch(channels, width, (1, 2, 2))
        self.short = Patch(channels, width, (1, 2, 2))
        self.mid = Patch(channels, width, (2, 4, 4))
        self.long = Patch(channels, width, (4, 8, 8))

    def forward(self, x: Tensor, window: HistoryWindow) -> tuple[Tensor, int]:
        """Tokens ``[long | mid | short | noisy]`` ``[B, L, D]`` and how many of them are history.

        Args:
            x: ``[B, C, T, h, w]`` noisy latents; ``h`` and ``w`` even.
            window: history in the dtype of ``x``, at full resolution whatever that of ``x``.
        """
        past = self.past(window)
        return torch.cat((*past, self.noisy(x)), dim=1), sum(part.shape[1] for part in past)

    def past(self, window: HistoryWindow) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the long, mid and short history, ``[B, tokens, D]`` each."""
        return self.long(window.long), self.mid(window.mid), self.short(window.short)


def unpatch(tokens: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """Head output ``[B, T*Y*X, 2*2*C]``, channel fastest, to latents ``[B, C, T, 2Y, 2X]``."""
    cells = tokens.unflatten(2, (2, 2, -1)).unflatten(1, (frames, rows, columns))
    # [B, T, Y, X, y, x, C] -> [B, C, T, Y, y, X, x]
    return cells.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
