"""Sphere tracing in plain torch: one march step, one shadow step, one shading, all elementwise.

Rays live in the frame of the object they may meet, at its unit size, so that marching needs
neither rotations nor the other objects. ``which`` is either one shape's number (rays sorted by
shape: only its distance is computed) or a tensor of numbers (all distances, then a choice: one
kernel for every shape, which is what compiling wants).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import CONCAVE, DISTANCES, Distance, distance_by_id
from .vector import Vec, add, clamp01, dot, mix, normalise, smoothstep
from .vocabulary import SHAPES

__all__ = [
    "CORNERS",
    "MARCH_STEPS",
    "SELF_STEPS",
    "SHADOW_STEPS",
    "Surface",
    "Which",
    "encode",
    "enter",
    "march_step",
    "self_shadow_step",
    "shade",
    "shadow_step",
    "slope_step",
]

Which = int | Tensor

MARCH_STEPS = 22
SHADOW_STEPS = 14
SELF_STEPS = 7
PENUMBRA = 10.0
NEAR = 0.006
CORNERS = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))
CONCAVE_IDS = tuple(SHAPES.index(shape) for shape in SHAPES if shape in CONCAVE)


def _distance(which: Which) -> Distance:
    return DISTANCES[which] if isinstance(which, int) else distance_by_id(which)


def enter(origin: Vec, direction: Vec, bound: Tensor) -> Tensor:
    """Distance along unit rays to the bounding ball; where they miss it, to its nearest point."""
    along = dot(origin, direction)
    inside = along * along - dot(origin, origin) + bound * bound
    return -along - torch.sqrt(torch.relu(inside))


def march_step(origin: Vec, direction: Vec, t: Tensor, which: Which) -> Tensor:
    """One step of sphere tracing."""
    return t + _distance(which)(add(origin, direction, t))


def shadow_step(
    origin: Vec, direction: Vec, t: Tensor, light: Tensor, which: Which
) -> tuple[Tensor, Tensor]:
    """One step towards the lamp: the share of light left narrows where the ray passes close by."""
    d = _distance(which)(add(origin, direction, t))
    return t + d.clamp(0.035, 0.4), torch.minimum(light, PENUMBRA * d / t)


def self_shadow_step(
    origin: Vec, direction: Vec, t: Tensor, light: Tensor, which: Which
) -> tuple[Tensor, Tensor]:
    """The same from a point on a shape that can shadow itself; convex shapes stay fully lit."""
    d = _distance(which)(add(origin, direction, t))
    narrow = torch.minimum(light, 5.0 * d / t)
    if isinstance(which, Tensor):
        concave = (which == CONCAVE_IDS[0]) | (which == CONCAVE_IDS[1])
        narrow = torch.where(concave, narrow, light)
    return t + d.clamp(0.05, 0.3), narrow


def slope_step(point: Vec, total: Vec, corner: Tensor, which: Which) -> Vec:
    """Add one corner's share to the slope of the distance; four corners make the normal."""
    x, y, z = corner.unbind()
    d = _distance(which)((point[0] + x * NEAR, point[1] + y * NEAR, point[2] + z * NEAR))
    return total[0] + x * d, total[1] + y * d, total[2] + z * d


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What shading needs to know, all in the object's frame: vectors, colours and flags."""

    lamp_direction: Vec
    up: Vec
    scale: Tensor
    height: Tensor
    albedo: Vec
    shiny: Tensor
    pattern: Tensor
    lamp: Vec
    sky: Vec
    floor: Vec


def encode(value: Tensor) -> Tensor:
    """Linear light to picture values: a soft shoulder above 0.8, then gamma 2.2."""
    over = torch.relu(value - 0.8)
    value = value.clamp(1e-6, 0.8) + 0.2 * (1 - torch.exp(-5.0 * over))
    return value ** (1 / 2.2)


def _two_tone(albedo: Vec, point: Vec, pattern: Tensor, which: Which) -> Vec:
    """Lighter wedges around the axis, so that the turning of a round shape shows."""
    ring = which == SHAPES.index("torus")
    side = (
        torch.where(ring, point[1], point[2])
        if isinstance(ring, Tensor)
        else (point[1] if ring else point[2])
    )
    x = point[0]
    # Re (x + i side)^3 over the cubed radius: three wedges without an angle
    radius = torch.sqrt(x * x + side * side + 1e-4)
    wave = x * (x * x - 3.0 * side * side) / (radius * radius * radius)
    share = pattern * smoothstep(0.15, 0.42, wave)
    bright = (albedo[0] + albedo[1] + albedo[2]) * (1 / 3)
    pale = smoothstep(0.75, 0.9, bright)  # white cannot be lightened: its wedges are light grey
    target = tuple(c * 0.72 + 0.22 - 0.34 * pale for c in albedo)
    return mix(albedo, (target[0], target[1], target[2]), share)


def shade(point: Vec, n: Vec, view: Vec, lit: Tensor, look: Surface, which: Which) -> Vec:
    """Colour of surface points in picture values; ``view`` points away from the camera."""
    facing = dot(n, look.lamp_direction)
    soft = 0.16 * (1.0 - look.shiny)
    diffuse = torch.relu(facing + soft) / (1.0 + soft) * lit
    up = dot(n, look.up)
    height = look.height + look.scale * dot(point, look.up)
    near_floor = torch.exp(-3.0 * torch.relu(height) / (0.3 + look.scale))
    open_sky = 1.0 - 0.55 * near_floor * (0.5 - 0.5 * up)
    above, below = (0.5 + 0.5 * up) * open_sky, (0.5 - 0.5 * up) * open_sky
    albedo = _two_tone(look.albedo, point, look.pattern, which)

    across = dot(n, view)
    mirror = normalise(add(view, n, -2.0 * across))
    towards = dot(mirror, look.lamp_direction)
    glint = 1.1 * torch.exp(42.0 * (towards - 1.0)) * lit + 0.03 * torch.exp(7.0 * (towards - 1.0))
    graze = clamp01(1.0 + across)
    fresnel = 0.02 + 0.45 * graze * graze * graze * graze
    horizon = smoothstep(-0.15, 0.25, dot(mirror, look.up))

    channels = []
    for a, lamp, sky, floor in zip(albedo, look.lamp, look.sky, look.floor):
        base = a * (lamp * diffuse + sky * above + floor * below)
        around = floor * 1.2 + (sky * 2.0 - floor * 1.2) * horizon
        gloss = fresnel * around + lamp * glint
        channels.append(encode(base + look.shiny * gloss))
    return channels[0], channels[1], channels[2]
