"""Optical flow without a network: Farnebäck's two-frame motion from quadratic polynomials.

Around every pixel the picture is a parabola ``xᵀ A x + bᵀ x + c``. Where it moves by ``d`` the
linear part changes by ``-2 A d``; averaged over a window, that gives ``d``. Coarse pictures first,
each level refining the last (G. Farnebäck 2003, "Two-frame motion estimation based on polynomial
expansion").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["flow", "warp"]

LEVELS = 3
"""Pictures of full, half and quarter size."""
ITERATIONS = 2
WINDOW = 15
"""Pixels over which the motion is taken to be one."""
RADIUS, DEVIATION = 5, 1.2
"""Reach and standard deviation of the weight around each pixel, in pixels."""
STIFFNESS = 0.05
"""Added to the squared curvature (levels of 255 per pixel², squared): a flat picture stands still
and its rounding to whole levels is no motion."""


def flow(first: Tensor, second: Tensor) -> Tensor:
    """Where every pixel of ``first`` is in ``second``, as a displacement in pixels.

    Args:
        first: grey values 0 to 255, float ``[N, H, W]``, each side at least 16.
        second: the same shape.

    Returns:
        ``[N, 2, H, W]``: across, then down.

    Raises:
        ValueError: on another shape.
    """
    if first.shape != second.shape or first.ndim != 3 or min(first.shape[1:]) < 16:
        raise ValueError(
            f"flow needs two [N, H, W] of at least 16x16, got {list(first.shape)} "
            f"and {list(second.shape)}"
        )
    pairs = [(first[:, None], second[:, None])]
    while len(pairs) < LEVELS and min(pairs[-1][0].shape[-2:]) >= 32:
        pairs.append((_half(pairs[-1][0]), _half(pairs[-1][1])))
    moved = first.new_zeros(len(first), 2, *pairs[-1][0].shape[-2:])
    for one, two in reversed(pairs):
        if moved.shape[-2:] != one.shape[-2:]:
            scale = [one.shape[-1] / moved.shape[-1], one.shape[-2] / moved.shape[-2]]
            moved = F.interpolate(moved, one.shape[-2:], mode="bilinear")
            moved = moved * moved.new_tensor(scale).view(1, 2, 1, 1)
        before, after = _expand(one), _expand(two)
        for _ in range(ITERATIONS):
            moved = _refine(before, after, moved)
    return moved


def warp(images: Tensor, displacement: Tensor) -> Tensor:
    """``images [N, C, H, W]`` read at ``x + displacement`` (``[N, 2, H, W]``), edges repeated."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None]
    x = torch.arange(width, device=images.device, dtype=images.dtype)
    across = (x + displacement[:, 0] + 0.5) * (2 / width) - 1
    down = (y + displacement[:, 1] + 0.5) * (2 / height) - 1
    grid = torch.stack((across, down), dim=-1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _half(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 2)


def _expand(images: Tensor) -> Tensor:
    """Of the parabola around each pixel: A across, A down, A mixed, b across, b down; ``[N, 5]``.

    The weight is a product of two equal Gaussians, so ``x² - m2`` and ``y² - m2`` are orthogonal to
    each other, to the constant and to the linear terms, and every coefficient is one ratio.
    """
    offset = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * (offset / DEVIATION).square())
    weight = weight / weight.sum()
    m2, m4 = float((weight * offset**2).sum()), float((weight * offset**4).sum())
    plain, slope, bend = weight, weight * offset / m2, weight * (offset**2 - m2) / (m4 - m2**2)
    padded = F.pad(images, (RADIUS,) * 4, mode="replicate")
    flat, tilted, bent = (_taps(padded, row, -1) for row in (plain, slope, bend))
    return torch.cat(
        (
            _taps(bent, plain, -2),
            _taps(flat, bend, -2),
            _taps(tilted, slope, -2) / 2,
            _taps(tilted, plain, -2),
            _taps(flat, slope, -2),
        ),
        dim=1,
    )


def _taps(images: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Weighted sum over neighbours along one axis, in whole float32 on every device.

    A convolution would be rounded to ten bits on recent GPUs, which is motion enough.
    """
    length = images.shape[axis] - len(weights) + 1
    total = torch.zeros_like(images.narrow(axis, 0, length))
    for start, weight in enumerate(weights.tolist()):
        if weight:
            total = torch.add(total, images.narrow(axis, start, length), alpha=weight)
    return total


def _refine(before: Tensor, after: Tensor, moved: Tensor) -> Tensor:
    """One step of the least-squares displacement, given a first guess of it."""
    there = warp(after, moved)
    xx, yy, xy = ((before[:, k] + there[:, k]) / 2 for k in range(3))
    across = (before[:, 3] - there[:, 3]) / 2 + xx * moved[:, 0] + xy * moved[:, 1]
    down = (before[:, 4] - there[:, 4]) / 2 + xy * moved[:, 0] + yy * moved[:, 1]
    sums = torch.stack(
        (
            xx * xx + xy * xy,
            xy * (xx + yy),
            yy * yy + xy * xy,
            xx * across + xy * down,
            xy * across + yy * down,
        ),
        dim=1,
    )
    half = WINDOW // 2
    sums = F.pad(sums, (half,) * 4, mode="replicate")
    sums = _box(_box(sums, -1), -2) / WINDOW**2
    g11, g12, g22, h1, h2 = sums.unbind(1)
    g11, g22 = g11 + STIFFNESS, g22 + STIFFNESS
    determinant = g11 * g22 - g12 * g12
    return torch.stack((g22 * h1 - g12 * h2, g11 * h2 - g12 * h1), dim=1) / determinant[:, None]


def _box(values: Tensor, axis: int) -> Tensor:
    """Sums over ``WINDOW`` neighbours along one axis.

    Sums of one, two, four and eight neighbours are made by doubling and put side by side: six
    additions per value, and on a CPU a sixth of the time of a pooling layer.
    """
    length = values.shape[axis] - WINDOW + 1
    total = torch.zeros_like(values.narrow(axis, 0, length))
    sums, width, start = values, 1, 0
    while width <= WINDOW:
        if WINDOW & width:
            total += sums.narrow(axis, start, length)
            start += width
        count = sums.shape[axis] - width
        sums = sums.narrow(axis, 0, count) + sums.narrow(axis, width, count)
        width *= 2
    return total
