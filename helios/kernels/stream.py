"""The residual stream of a block, rounded once.

A block adds three things to its tokens: what self-attention, the text and the feed-forward network
give. The published network rounds the sum to its dtype each time, and in bfloat16 these three
roundings are nine tenths of the whole error of a forward pass. Here the parts are kept and added
anew, in float32, wherever the sum is looked at; it is rounded when the block is left. That moves no
more bytes than writing and reading the sums would.

Without gradients and where Triton runs only (:func:`rounds_late`): elsewhere a block computes every
bit as published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helios.kernels.dispatch import uses_triton
from helios.kernels.scaled import Rows, Scaled, plain_quantise_rows

__all__ = ["Stream", "rounds_late"]


def rounds_late(x: Tensor) -> bool:
    """Whether blocks over tokens like ``x`` keep their sums in a :class:`Stream`."""
    return uses_triton(x) and not torch.is_grad_enabled()


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The tokens of a block and what has been added to them; no gradient.

    Attributes:
        x: ``[B, L, D]`` tokens that enter the block.
        update: ``[B, L, D]`` what self-attention gives.
        gate: ``[B, 2, D]`` float32, its gate; row 0 is for tokens before ``split``.
        split: number of history tokens.
        start: first token that reads the text: 0, or ``split``.
    """

    x: Tensor
    update: Tensor
    gate: Tensor
    split: int
    start: int

    def text_norm(self, weight: Tensor, bias: Tensor, eps: float, *, fp8: bool = False) -> Rows:
        """Layer norm of ``x + update * gate`` with gains and offsets, from ``start`` on.

        Args:
            weight: ``[D]`` gains.
            bias: ``[D]`` offsets.
            eps: added to the (biased) variance.
            fp8: give e4m3 with a scale per token.

        Returns:
            ``[B, L - start, D]``.
        """
        x, update, gate, split = self.x, self.update, self.gate, self.split
        if self.start:
            # Only tokens of the second row are left.
            x, update, split = x[:, self.start :], update[:, self.start :], 0
        if uses_triton(x):
            from helios.kernels.stream_triton import normalised

            made = normalised(x, update, gate, split, None, 0, (weight, bias), eps, fp8=fp8)
            return Scaled(*made) if fp8 else made[0]
        late = self._sum()[:, self.start :]
        return self._out(
            F.layer_norm(late, late.shape[-1:], weight.float(), bias.float(), eps), fp8=fp8
        )

    def modulated_norm(
        self, read: Tensor, shift: Tensor, scale: Tensor, eps: float, *, fp8: bool = False
    ) -> Rows:
        """The norm and modulation of ``x + update * gate + read``, ``[B, L, D]``.

        Args:
            read: ``[B, L - start, D]`` what the tokens from ``start`` on read in the text.
            shift: ``[B, 2, D]`` float32; row 0 is for tokens before ``split``.
            scale: ``[B, 2, D]`` float32, likewise.
            eps: added to the (biased) variance.
            fp8: give e4m3 with a scale per token.
        """
        if uses_triton(self.x):
            from helios.kernels.stream_triton import normalised

            given = (self.x, self.update, self.gate, self.split, read, self.start)
            made = normalised(*given, (scale, shift), eps, fp8=fp8)
            return Scaled(*made) if fp8 else made[0]
        normal = F.layer_norm(self._sum(read), self.x.shape[-1:], eps=eps)
        return self._out(normal * (1 + self._rows(scale)) + self._rows(shift), fp8=fp8)

    def total(self, read: Tensor, last: Tensor, gate: Tensor) -> Tensor:
        """``x + update * gate + read + last * gate'`` in the dtype of ``x``, ``[B, L, D]``.

        Args:
            read: ``[B, L - start, D]`` what the tokens from ``start`` on read in the text.
            last: ``[B, L, D]`` what the feed-forward network gives.
            gate: ``[B, 2, D]`` float32, its gate.
        """
        if uses_triton(self.x):
            from helios.kernels.stream_triton import total

            given = (self.x, self.update, self.gate, self.split, read, self.start)
            return total(*given, (last, gate))
        return (self._sum(read) + last.float() * self._rows(gate)).to(self.x.dtype)

    def _sum(self, read: Tensor | None = None) -> Tensor:
        """The sum so far, in float32."""
        wide = self.x.float() + self.update.float() * self._rows(self.gate)
        if read is not None:
            wide[:, self.start :] += read.float()
        return wide

    def _rows(self, table: Tensor) -> Tensor:
        """``[B, 2, D]`` with one row per token."""
        counts = (self.split, self.x.shape[1] - self.split)
        parts = zip(table.split(1, dim=1), counts, strict=True)
        return torch.cat([row.expand(-1, count, -1) for row, count in parts], dim=1)

    def _out(self, wide: Tensor, *, fp8: bool) -> Rows:
        return plain_quantise_rows(wide) if fp8 else wide.to(self.x.dtype)
