"""The eight shapes: signed distance, bounding radius, and how far they reach in a direction.

All are given at unit size around their own origin, upright along y and facing z. The distances are
exact or a little too small outside, so that a ray that advances by them never passes a surface.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .vector import Vec, length2
from .vocabulary import SHAPES

__all__ = [
    "BOUND",
    "CONCAVE",
    "DISTANCES",
    "HEIGHT",
    "ROUND",
    "WIDTH",
    "Distance",
    "distance_by_id",
    "support",
]

Distance = Callable[[Vec], Tensor]

CUBE = 0.74
CYLINDER_RADIUS, CYLINDER_HALF = 0.7, 0.8
CONE_RADIUS, CONE_TOP, CONE_BASE = 0.86, 1.0, 0.75
TORUS_MAJOR, TORUS_MINOR = 0.69, 0.31
PYRAMID_SIDE, PYRAMID_TOP, PYRAMID_BASE = 0.78, 0.98, 0.66
CAPSULE_RADIUS, CAPSULE_HALF = 0.47, 0.6
STAR_OUTER, STAR_INNER, STAR_HALF = 1.12, 0.55, 0.4
EDGE = 0.07

BOUND = {
    "sphere": 1.0,
    "cube": 1.29,
    "cylinder": 1.07,
    "cone": 1.15,
    "torus": 1.0,
    "pyramid": 1.29,
    "capsule": 1.07,
    "star": 1.12,
}
"""Radius of a ball around the origin that holds the shape."""

WIDTH = {
    "sphere": 1.0,
    "cube": 1.05,
    "cylinder": 0.7,
    "cone": 0.86,
    "torus": 1.0,
    "pyramid": 1.1,
    "capsule": 0.47,
    "star": 1.07,
}
"""Largest half width when standing, at any angle about the vertical."""

HEIGHT = {
    "sphere": 2.0,
    "cube": 2 * CUBE,
    "cylinder": 2 * CYLINDER_HALF,
    "cone": CONE_TOP + CONE_BASE,
    "torus": 2.0,
    "pyramid": PYRAMID_TOP + PYRAMID_BASE,
    "capsule": 2 * (CAPSULE_HALF + CAPSULE_RADIUS),
    "star": STAR_OUTER * (1 + math.cos(math.pi / 5)),
}
"""Height when standing."""

ROUND = frozenset({"sphere", "cylinder", "cone", "capsule"})
"""Shapes that look the same at every angle about the vertical."""

CONCAVE = frozenset({"torus", "star"})
"""Shapes that can throw a shadow on themselves."""


def _smooth_max(a: Tensor, b: Tensor) -> Tensor:
    """Maximum with a rounded edge of width ``EDGE``."""
    overlap = torch.relu(EDGE - (a - b).abs())
    return torch.maximum(a, b) + overlap * overlap * (0.25 / EDGE)


def _sphere(p: Vec) -> Tensor:
    return torch.sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2] + 1e-12) - 1.0


def _cube(p: Vec) -> Tensor:
    x, y, z = (c.abs() - (CUBE - EDGE) for c in p)
    inside = torch.maximum(x, torch.maximum(y, z)).clamp(max=0.0)
    x, y, z = torch.relu(x), torch.relu(y), torch.relu(z)
    return torch.sqrt(x * x + y * y + z * z + 1e-12) + inside - EDGE


def _cylinder(p: Vec) -> Tensor:
    side = length2(p[0], p[2]) - (CYLINDER_RADIUS - EDGE)
    cap = p[1].abs() - (CYLINDER_HALF - EDGE)
    inside = torch.maximum(side, cap).clamp(max=0.0)
    return length2(torch.relu(side), torch.relu(cap)) + inside - EDGE


def _cone(p: Vec) -> Tensor:
    slant = math.hypot(CONE_TOP + CONE_BASE, CONE_RADIUS)
    side_n, up_n = (CONE_TOP + CONE_BASE) / slant, CONE_RADIUS / slant
    side = length2(p[0], p[2]) * side_n + (p[1] - CONE_TOP) * up_n
    return _smooth_max(side, -p[1] - CONE_BASE)


def _torus(p: Vec) -> Tensor:
    return length2(length2(p[0], p[1]) - TORUS_MAJOR, p[2]) - TORUS_MINOR


def _pyramid(p: Vec) -> Tensor:
    slant = math.hypot(PYRAMID_TOP + PYRAMID_BASE, PYRAMID_SIDE)
    side_n, up_n = (PYRAMID_TOP + PYRAMID_BASE) / slant, PYRAMID_SIDE / slant
    drop = (p[1] - PYRAMID_TOP) * up_n
    sides = _smooth_max(p[0].abs() * side_n + drop, p[2].abs() * side_n + drop)
    return _smooth_max(sides, -p[1] - PYRAMID_BASE)


def _capsule(p: Vec) -> Tensor:
    y = torch.relu(p[1].abs() - CAPSULE_HALF)
    return torch.sqrt(p[0] * p[0] + y * y + p[2] * p[2] + 1e-12) - CAPSULE_RADIUS


def _star_normal() -> tuple[float, float, float, float]:
    """The facet through tip, notch and the ridge above the centre: unit normal and offset."""
    tip = (0.0, STAR_OUTER)
    notch = (STAR_INNER * math.sin(math.pi / 5), STAR_INNER * math.cos(math.pi / 5))
    edge = (notch[0] - tip[0], notch[1] - tip[1])
    across = (-edge[1], edge[0])
    offset = across[0] * tip[0] + across[1] * tip[1]
    normal = (across[0], across[1], offset / STAR_HALF)
    size = math.sqrt(sum(c * c for c in normal))
    return normal[0] / size, normal[1] / size, normal[2] / size, offset / size


def _star(p: Vec) -> Tensor:
    """A five-pointed star with facets, folded into one half point by its mirrors."""
    x, y = p[0].abs(), p[1]
    for angle in (0.6 * math.pi, 0.2 * math.pi):  # mirrors between neighbouring points
        nx, ny = math.cos(angle), -math.sin(angle)
        reach = 2.0 * torch.relu(x * nx + y * ny)
        x, y = x - reach * nx, y - reach * ny
    x = x.abs()
    nx, ny, nz, offset = _star_normal()
    return x * nx + y * ny + p[2].abs() * nz - offset


DISTANCES: tuple[Distance, ...] = (
    _sphere,
    _cube,
    _cylinder,
    _cone,
    _torus,
    _pyramid,
    _capsule,
    _star,
)
"""Signed distance of each shape, in the order of ``SHAPES``."""


def distance_by_id(shape: Tensor) -> Distance:
    """The distance function that picks, element by element, the shape whose number is given."""

    def distance(p: Vec) -> Tensor:
        value = DISTANCES[0](p)
        for number, function in enumerate(DISTANCES[1:], start=1):
            value = torch.where(shape == number, function(p), value)
        return value

    return distance


def support(shape: Tensor, n: Vec) -> Tensor:
    """How far each shape reaches along the unit direction ``n`` in its own frame."""
    x, y, z = n
    flat = torch.sqrt(x * x + z * z)
    tips = torch.stack(
        [x * math.sin(k * 0.4 * math.pi) + y * math.cos(k * 0.4 * math.pi) for k in range(5)]
    ).amax(0)
    reach = (
        torch.ones_like(x),
        (CUBE - EDGE) * (x.abs() + y.abs() + z.abs()) + EDGE,
        (CYLINDER_RADIUS - EDGE) * flat + (CYLINDER_HALF - EDGE) * y.abs() + EDGE,
        torch.maximum(CONE_TOP * y, CONE_RADIUS * flat - CONE_BASE * y),
        TORUS_MAJOR * torch.sqrt(x * x + y * y) + TORUS_MINOR,
        torch.maximum(PYRAMID_TOP * y, PYRAMID_SIDE * (x.abs() + z.abs()) - PYRAMID_BASE * y),
        CAPSULE_HALF * y.abs() + CAPSULE_RADIUS,
        torch.maximum(STAR_OUTER * tips, STAR_HALF * z.abs()),
    )
    value = reach[0]
    for number in range(1, len(SHAPES)):
        value = torch.where(shape == number, reach[number], value)
    return value
