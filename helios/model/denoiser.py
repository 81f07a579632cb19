"""A transformer closed over what does not change within a chunk: text and history."""

from __future__ import annotations

from torch import Tensor

from helios.diffusion import Denoiser
from helios.history import HistoryWindow
from helios.model.transformer import HeliosTransformer

__all__ = ["bind"]


def bind(transformer: HeliosTransformer, text: Tensor, window: HistoryWindow) -> Denoiser:
    """What the sampler asks: ``(x, timestep) -> velocity``, for this text and this past.

    Args:
        transformer: the network.
        text: ``[B, L, text_dim]`` embeddings.
        window: the past of the same batch.
    """

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        velocity: Tensor = transformer(x, timestep, text, window)
        return velocity

    return denoise
