"""A text encoder whose weights stay in host memory and visit the device layer by layer.

The published encoder has 11.4 GB in bfloat16 and works once per prompt; a card of 24 GB has better
uses for the room. Source: specification "performance", section 4 (24 GB cards).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helios.conditioning.text import TextEncoder
from helios.model import Guest

__all__ = ["let_visit"]


def let_visit(encoder: TextEncoder, device: torch.device) -> None:
    """From now on every layer of ``encoder`` runs on ``device`` and leaves it afterwards.

    Embeddings come back on ``device``. The table of words stays where it is: of it only the rows of
    a prompt are wanted. Nothing is kept on the device between prompts, so nothing comes early.
    """
    stack = encoder.encoder.encoder
    for layer in (*stack.block, stack.final_layer_norm):
        visit = _Visit(layer, device)
        layer.register_forward_pre_hook(visit.come, with_kwargs=True)
        layer.register_forward_hook(visit.leave, always_call=True)


class _Visit:
    """One layer's way to the device and back."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self._guest, self._device = Guest(layer), device

    def come(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the weights, and the inputs, to the device."""
        self._guest.dress(own.detach().to(self._device) for own in self._guest.home)
        return tuple(map(self._brought, args)), {k: self._brought(v) for k, v in kwargs.items()}

    def _brought(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value

    def leave(self, *_: Any) -> None:
        """The weights themselves again; nothing is copied back, for nothing has changed."""
        self._guest.undress()
