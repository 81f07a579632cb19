"""The eight settings: floor, backdrop, light. Smooth patterns only; no per-pixel noise.

Colours are linear light. A setting is a function from what a pixel sees (a floor point, a
direction) to the floor's own colour and the backdrop's colour, and a light that falls on objects
and floor alike. Patterns are filtered by the size of a pixel on the floor, so nothing flickers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .vector import Vec, clamp01, length2, mix, smoothstep

__all__ = ["ALBEDO", "ANIMATED", "LIGHTS", "SURROUNDINGS", "Light", "Surroundings", "View"]

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Light:
    """A distant lamp, the sky's diffuse light and the light thrown back by the floor."""

    direction: Colour
    lamp: Colour
    sky: Colour
    floor: Colour
    haze: Colour


@dataclass(frozen=True, kw_only=True)
class View:
    """What pixels see: ``x``, ``z`` and ``span`` (pixel size across and along) of the floor point,
    ``far`` its distance; ``dir`` the direction; ``time`` the frame index.
    """

    x: Tensor
    z: Tensor
    far: Tensor
    across: Tensor
    along: Tensor
    direction: Vec
    time: Tensor


Surroundings = Callable[[View], tuple[Vec, Vec]]
"""From what pixels see to (floor colour, backdrop colour)."""

ALBEDO: dict[str, Colour] = {
    "red": (0.78, 0.025, 0.025),
    "orange": (0.98, 0.27, 0.01),
    "yellow": (0.98, 0.78, 0.04),
    "green": (0.03, 0.46, 0.08),
    "blue": (0.025, 0.11, 0.78),
    "purple": (0.27, 0.035, 0.5),
    "pink": (0.98, 0.30, 0.52),
    "white": (0.93, 0.93, 0.92),
}

_KEY = (-0.52, 0.72, 0.46)


def _unit(v: Colour) -> Colour:
    size = math.sqrt(sum(c * c for c in v))
    return v[0] / size, v[1] / size, v[2] / size


LIGHTS: dict[str, Light] = {
    "checkered": Light(
        direction=_unit(_KEY),
        lamp=(0.86, 0.83, 0.78),
        sky=(0.34, 0.34, 0.36),
        floor=(0.14, 0.13, 0.12),
        haze=(0.50, 0.44, 0.36),
    ),
    "grass": Light(
        direction=_unit(_KEY),
        lamp=(0.92, 0.88, 0.78),
        sky=(0.28, 0.34, 0.42),
        floor=(0.08, 0.13, 0.05),
        haze=(0.24, 0.42, 0.14),
    ),
    "sand": Light(
        direction=_unit(_KEY),
        lamp=(0.94, 0.88, 0.76),
        sky=(0.30, 0.34, 0.40),
        floor=(0.20, 0.16, 0.10),
        haze=(0.80, 0.72, 0.58),
    ),
    "water": Light(
        direction=_unit(_KEY),
        lamp=(0.90, 0.88, 0.82),
        sky=(0.30, 0.36, 0.42),
        floor=(0.05, 0.12, 0.14),
        haze=(0.62, 0.80, 0.86),
    ),
    "snow": Light(
        direction=_unit(_KEY),
        lamp=(0.84, 0.82, 0.78),
        sky=(0.30, 0.35, 0.42),
        floor=(0.20, 0.22, 0.26),
        haze=(0.70, 0.80, 0.90),
    ),
    "night": Light(
        direction=_unit(_KEY),
        lamp=(0.88, 0.88, 0.92),
        sky=(0.19, 0.20, 0.26),
        floor=(0.03, 0.04, 0.07),
        haze=(0.020, 0.028, 0.075),
    ),
    "sunset": Light(
        direction=_unit((-0.62, 0.58, 0.46)),
        lamp=(0.96, 0.86, 0.76),
        sky=(0.26, 0.25, 0.30),
        floor=(0.12, 0.08, 0.08),
        haze=(0.80, 0.28, 0.14),
    ),
    "studio": Light(
        direction=_unit(_KEY),
        lamp=(0.84, 0.84, 0.84),
        sky=(0.38, 0.38, 0.40),
        floor=(0.18, 0.18, 0.19),
        haze=(0.40, 0.40, 0.43),
    ),
}


def _flat(colour: Colour, like: Tensor) -> Vec:
    one = torch.ones_like(like)
    return colour[0] * one, colour[1] * one, colour[2] * one


def _blend(a: Colour, b: Colour, share: Tensor) -> Vec:
    return mix(_flat(a, share), _flat(b, share), share)


def _soften(wave: Tensor, frequency: float, span: Tensor) -> Tensor:
    """Fade a sine of ``frequency`` (radians per unit) where a pixel covers much of its wave."""
    return wave * torch.exp(-0.25 * (frequency * span) ** 2)


def _square(x: Tensor, span: Tensor) -> Tensor:
    """A square wave of period 2 between -1 and 1, averaged over ``span``."""

    def triangle(v: Tensor) -> Tensor:
        u = v - 2 * torch.floor(v * 0.5)
        return 1 - (u - 1).abs()

    fade = torch.exp(-0.7 * span * span)
    span = span.clamp(min=0.02)
    return fade * ((triangle(x + span / 2) - triangle(x - span / 2)) / span).clamp(-1, 1)


def _ridge(view: View, frequency: float, phase: float, height: float) -> Tensor:
    """Share of backdrop that lies under a gentle line of hills."""
    d = view.direction
    azimuth = d[0] / (-d[2]).clamp(min=0.2)
    line = height * (
        0.6
        + 0.28 * torch.sin(azimuth * frequency + phase)
        + 0.12 * torch.sin(azimuth * frequency * 2.3 + 2 * phase)
    )
    return smoothstep(0.005, -0.005, d[1] - line)


def _elevation(view: View) -> Tensor:
    return clamp01(view.direction[1] / 0.22)


def _disc(view: View, azimuth: float, elevation: float, radius: float) -> Tensor:
    d = view.direction
    away = length2(d[0] / (-d[2]).clamp(min=0.2) - azimuth, d[1] - elevation)
    return smoothstep(radius + 0.004, radius - 0.004, away)


def _checkered(view: View) -> tuple[Vec, Vec]:
    tile = 0.62
    check = _square(view.x / tile, view.across / tile) * _square(view.z / tile, view.along / tile)
    floor = _blend((0.15, 0.17, 0.21), (0.62, 0.60, 0.56), 0.5 + 0.5 * check)
    wall = _blend((0.50, 0.42, 0.32), (0.62, 0.55, 0.45), _elevation(view))
    skirting = smoothstep(0.034, 0.028, view.direction[1])
    return floor, mix(wall, _flat((0.22, 0.15, 0.10), wall[0]), skirting)


def _grass(view: View) -> tuple[Vec, Vec]:
    mown = _soften(torch.sin(view.x * 2.2 + 0.35 * torch.sin(view.z * 1.1)), 2.2, view.across)
    tufts = _soften(
        torch.sin(view.x * 6.1 + view.z * 2.3) * torch.sin(view.z * 5.3 - view.x * 1.7),
        8.0,
        view.along,
    )
    floor = _blend(
        (0.10, 0.22, 0.035), (0.24, 0.40, 0.07), clamp01(0.5 + 0.4 * mown + 0.22 * tufts)
    )
    sky = _blend((0.62, 0.80, 0.95), (0.22, 0.48, 0.88), _elevation(view))
    d = view.direction
    cloud = torch.sin(d[0] * 9 + 1) * torch.sin(d[0] * 5 + d[1] * 30 + 2) + torch.sin(d[1] * 38)
    sky = mix(sky, _flat((0.95, 0.97, 1.0), cloud), 0.75 * smoothstep(0.5, 1.2, cloud))
    sky = mix(sky, _flat((0.16, 0.34, 0.14), cloud), _ridge(view, 5.0, 1.0, 0.075))
    return floor, mix(sky, _flat((0.10, 0.24, 0.07), cloud), _ridge(view, 8.0, 3.0, 0.04))


def _sand(view: View) -> tuple[Vec, Vec]:
    bend = view.z * 6.0 + 0.9 * torch.sin(view.x * 1.4) + 0.5 * torch.sin(view.x * 2.9 + view.z)
    ripple = _soften(torch.sin(bend), 6.0, view.along)
    floor = _blend((0.58, 0.40, 0.21), (0.82, 0.63, 0.37), clamp01(0.5 + 0.5 * ripple))
    sky = _blend((0.85, 0.82, 0.72), (0.36, 0.62, 0.86), _elevation(view))
    far = _flat((0.74, 0.52, 0.30), ripple)
    sky = mix(sky, far, _ridge(view, 4.0, 0.4, 0.085))
    return floor, mix(sky, _flat((0.60, 0.38, 0.19), ripple), _ridge(view, 6.5, 2.2, 0.045))


def _water(view: View) -> tuple[Vec, Vec]:
    turn = 2 * math.pi * view.time
    waves = (
        _soften(torch.sin(view.z * 4.2 + view.x * 0.9 + turn / 47), 4.2, view.along)
        + _soften(torch.sin(view.z * 6.7 - view.x * 2.2 + turn / 38 + 1), 6.7, view.along)
        + _soften(torch.sin(view.z * 3.1 + view.x * 3.0 - turn / 59 + 2), 4.0, view.along)
    ) / 3
    floor = _blend((0.015, 0.14, 0.20), (0.10, 0.42, 0.48), clamp01(0.45 + 0.6 * waves))
    glint = smoothstep(0.45, 0.95, waves)
    floor = mix(floor, _flat((0.70, 0.90, 0.92), waves), 0.55 * glint)
    sky = _blend((0.72, 0.86, 0.92), (0.20, 0.52, 0.85), _elevation(view))
    return floor, sky


def _snow(view: View) -> tuple[Vec, Vec]:
    drift = _soften(
        torch.sin(view.x * 1.3 + 1.2 * torch.sin(view.z * 0.9)) * torch.sin(view.z * 2.1 + view.x),
        2.5,
        view.along,
    )
    floor = _blend((0.52, 0.62, 0.78), (0.80, 0.86, 0.94), clamp01(0.55 + 0.5 * drift))
    sky = _blend((0.74, 0.80, 0.88), (0.46, 0.60, 0.80), _elevation(view))
    sky = mix(sky, _flat((0.60, 0.68, 0.80), drift), _ridge(view, 4.2, 2.0, 0.10))
    d = view.direction
    azimuth = d[0] / (-d[2]).clamp(min=0.2)
    saw = azimuth * 11 + 0.3
    tree = 1 - 2.0 * (saw - torch.floor(saw) - 0.5).abs() * 1.5
    tall = 0.075 + 0.02 * torch.sin(torch.floor(saw) * 2.4)
    pine = smoothstep(0.006, -0.006, d[1] - tall * tree)
    return floor, mix(sky, _flat((0.06, 0.17, 0.15), drift), pine)


def _night(view: View) -> tuple[Vec, Vec]:
    pool = torch.exp(-0.30 * (view.x * view.x + 0.7 * view.z * view.z))
    floor = _blend((0.020, 0.028, 0.07), (0.13, 0.16, 0.27), pool)
    d = view.direction
    azimuth = d[0] / (-d[2]).clamp(min=0.2)
    sky = _blend((0.030, 0.045, 0.13), (0.006, 0.010, 0.045), _elevation(view))
    column = torch.floor(azimuth * 14)
    u = azimuth * 14 - column - 0.5 - 0.3 * torch.sin(column * 5.1)
    v = (d[1] - 0.115 - 0.055 * torch.sin(column * 3.7)) * 14
    star = smoothstep(0.15, 0.03, length2(u, v))
    sky = mix(sky, _flat((0.85, 0.88, 1.0), star), star)
    glow = torch.exp(-60 * ((azimuth - 0.25) ** 2 + (d[1] - 0.085) ** 2))
    sky = mix(sky, _flat((0.20, 0.24, 0.40), glow), 0.6 * glow)
    moon = _disc(view, 0.25, 0.085, 0.03)
    sky = mix(sky, _flat((0.92, 0.90, 0.78), moon), moon)
    return floor, mix(sky, _flat((0.008, 0.012, 0.035), moon), _ridge(view, 5.0, 1.2, 0.035))


def _sunset(view: View) -> tuple[Vec, Vec]:
    azimuth = view.direction[0] / (-view.direction[2]).clamp(min=0.2)
    sheen = torch.exp(-180.0 * (azimuth + 0.2) ** 2) * smoothstep(3.0, 12.0, view.far)
    wave = _soften(torch.sin(view.z * 3.4 + 0.8 * torch.sin(view.x * 1.3)), 3.4, view.along)
    floor = _blend((0.15, 0.075, 0.10), (0.24, 0.12, 0.12), clamp01(0.5 + 0.5 * wave))
    floor = mix(floor, _flat((0.95, 0.42, 0.16), wave), 0.55 * sheen)
    e = _elevation(view)
    sky = mix(
        _blend((1.0, 0.42, 0.08), (0.70, 0.16, 0.20), smoothstep(0.0, 0.45, e)),
        _flat((0.16, 0.07, 0.26), e),
        smoothstep(0.35, 1.0, e),
    )
    sun = _disc(view, -0.2, 0.055, 0.042)
    sky = mix(sky, _flat((1.0, 0.86, 0.42), sun), sun)
    return floor, mix(sky, _flat((0.10, 0.035, 0.09), sun), _ridge(view, 6.0, 0.5, 0.035))


def _studio(view: View) -> tuple[Vec, Vec]:
    pool = torch.exp(-0.16 * (view.x * view.x + view.z * view.z))
    floor = _blend((0.34, 0.34, 0.37), (0.66, 0.65, 0.66), pool)
    d = view.direction
    spot = torch.exp(-16.0 * d[0] * d[0]) * smoothstep(-0.01, 0.11, d[1])
    wall = _blend((0.40, 0.40, 0.43), (0.74, 0.73, 0.76), spot)
    return floor, wall


SURROUNDINGS: tuple[Surroundings, ...] = (
    _checkered,
    _grass,
    _sand,
    _water,
    _snow,
    _night,
    _sunset,
    _studio,
)
"""Each setting's surroundings, in the order of ``SETTINGS``."""

ANIMATED = frozenset({"water"})
"""Settings that move by themselves."""
