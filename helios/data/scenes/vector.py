"""Three-component vectors as triples of tensors: every operation stays elementwise and fuses."""

import torch
from torch import Tensor

__all__ = ["Vec", "add", "clamp01", "dot", "length2", "mix", "normalise", "smoothstep", "unbind"]

Vec = tuple[Tensor, Tensor, Tensor]


def unbind(value: Tensor) -> Vec:
    """Split the last dimension, of size three."""
    return value[..., 0], value[..., 1], value[..., 2]


def dot(a: Vec, b: Vec) -> Tensor:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def add(a: Vec, b: Vec, scale: Tensor | float = 1.0) -> Vec:
    """``a + scale * b``."""
    return a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]


def normalise(a: Vec) -> Vec:
    """Unit vector; the zero vector stays finite."""
    inverse = torch.rsqrt(dot(a, a) + 1e-12)
    return a[0] * inverse, a[1] * inverse, a[2] * inverse


def length2(x: Tensor, y: Tensor) -> Tensor:
    """Length in the plane."""
    return torch.sqrt(x * x + y * y + 1e-12)


def clamp01(x: Tensor) -> Tensor:
    """Clamp to the unit interval."""
    return x.clamp(0.0, 1.0)


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """The cubic from 0 at ``low`` to 1 at ``high``; ``low`` may be above ``high``."""
    u = clamp01((x - low) * (1.0 / (high - low)))
    return u * u * (3.0 - 2.0 * u)


def mix(a: Vec, b: Vec, share: Tensor | float) -> Vec:
    """From ``a`` at 0 to ``b`` at 1."""
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )
