"""The straight path between a clean latent and noise, and what a velocity says about both ends.

``x = sigma * noise + (1 - sigma) * clean`` and ``velocity = noise - clean = dx / d sigma``
(specification "model and sampling", 6.1). The same four lines serve training, sampling and the
noise on a start image; in the pyramid "clean" and "noise" are the end and the start of a stage.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["mix", "to_clean", "to_noise", "velocity"]


def _broadcast(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """One level per sample, ``[B]``, spread over the remaining axes of ``like``."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1 and like.ndim > 1:
        return sigma.view(-1, *[1] * (like.ndim - 1))
    return sigma


def mix(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """The point at noise level ``sigma`` between ``clean`` (0) and ``noise`` (1).

    ``sigma`` is a number, one level per sample ``[B]``, or any shape that broadcasts.
    """
    level = _broadcast(sigma, clean)
    return level * noise + (1 - level) * clean


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The direction from ``clean`` to ``noise``: what the network learns to predict."""
    return noise - clean


def to_clean(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The clean end of the straight path through ``x`` at level ``sigma``."""
    return x - _broadcast(sigma, x) * velocity


def to_noise(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The noise end of the straight path through ``x`` at level ``sigma``."""
    return x + (1 - _broadcast(sigma, x)) * velocity
