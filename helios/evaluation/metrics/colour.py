"""Colour as people see it: CIE Lab of whole frames, and how far two colours are apart.

Frames are uint8 ``[..., T, H, W, 3]`` in sRGB. A frame's mean colour is taken in linear light, as a
camera out of focus would take it, so noise and blur alone do not move it (specification "training",
section 10.4).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["delta_e", "frame_lab", "lab_of_linear"]

# sRGB primaries (IEC 61966-2-1) to CIE XYZ, and its white, D65.
_TO_XYZ = (
    (0.4123907993, 0.3575843394, 0.1804807884),
    (0.2126390059, 0.7151686788, 0.0721923154),
    (0.0193308187, 0.1191947798, 0.9505321522),
)
_WHITE = (0.9504559271, 1.0, 1.0890577508)
_KNEE = (6 / 29) ** 3


def frame_lab(frames: Tensor) -> Tensor:
    """Mean colour of every frame in CIE Lab (D65), ``[..., T, 3]``: lightness 0-100, then a, b.

    Args:
        frames: uint8 ``[..., T, H, W, 3]``.
    """
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 [..., 3], got {frames.dtype} {list(frames.shape)}")
    levels = torch.arange(256, device=frames.device, dtype=torch.float32) / 255
    linear = torch.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return lab_of_linear(linear[frames.int()].mean(dim=(-3, -2)))


def lab_of_linear(rgb: Tensor) -> Tensor:
    """CIE Lab (D65) of linear sRGB values ``[..., 3]`` in 0 to 1."""
    matrix = torch.tensor(_TO_XYZ, dtype=rgb.dtype, device=rgb.device)
    white = torch.tensor(_WHITE, dtype=rgb.dtype, device=rgb.device)
    ratio = (rgb[..., None, :] * matrix).sum(dim=-1) / white
    bent = torch.where(ratio > _KNEE, ratio.clamp_min(_KNEE) ** (1 / 3), _line(ratio))
    x, y, z = bent.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def _line(ratio: Tensor) -> Tensor:
    return ratio * (29 / 6) ** 2 / 3 + 4 / 29


def delta_e(first: Tensor, second: Tensor) -> Tensor:
    """Difference of two Lab colours ``[..., 3]`` by CIEDE2000; about 1 is just noticeable.

    Source: Sharma, Wu, Dalal 2005, "The CIEDE2000 color-difference formula", equations 2 to 22,
    with kL = kC = kH = 1.
    """
    first, second = first.double(), second.double()
    light = [first[..., 0], second[..., 0]]
    plain = (first[..., 1:].norm(dim=-1) + second[..., 1:].norm(dim=-1)) / 2
    stretch = 1.5 - 0.5 * (plain**7 / (plain**7 + 25.0**7)).sqrt()
    green = [first[..., 1] * stretch, second[..., 1] * stretch]
    chroma = [torch.hypot(green[0], first[..., 2]), torch.hypot(green[1], second[..., 2])]
    hue = [_hue(first[..., 2], green[0]), _hue(second[..., 2], green[1])]
    grey = (chroma[0] * chroma[1]) == 0
    turn = hue[1] - hue[0]
    turn = torch.where(turn > 180, turn - 360, torch.where(turn < -180, turn + 360, turn))
    turn = torch.where(grey, torch.zeros_like(turn), turn)
    hue_step = 2 * (chroma[0] * chroma[1]).sqrt() * _sin(turn / 2)
    middle = _mean_hue(hue[0], hue[1], grey)
    lightness, colourful = (light[0] + light[1]) / 2, (chroma[0] + chroma[1]) / 2
    weight = (
        1
        - 0.17 * _cos(middle - 30)
        + 0.24 * _cos(2 * middle)
        + 0.32 * _cos(3 * middle + 6)
        - 0.20 * _cos(4 * middle - 63)
    )
    turned = 60 * torch.exp(-(((middle - 275) / 25) ** 2))
    rotation = -2 * (colourful**7 / (colourful**7 + 25.0**7)).sqrt() * _sin(turned)
    off = (lightness - 50) ** 2
    l_part = (light[1] - light[0]) / (1 + 0.015 * off / (20 + off).sqrt())
    c_part = (chroma[1] - chroma[0]) / (1 + 0.045 * colourful)
    h_part = hue_step / (1 + 0.015 * colourful * weight)
    squares = l_part**2 + c_part**2 + h_part**2 + rotation * c_part * h_part
    return squares.clamp_min(0).sqrt()


def _hue(b: Tensor, a: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(b, a)) % 360


def _mean_hue(first: Tensor, second: Tensor, grey: Tensor) -> Tensor:
    total = first + second
    far = (first - second).abs() > 180
    around = torch.where(total < 360, total + 360, total - 360)
    return torch.where(grey, total, torch.where(far, around, total) / 2)


def _sin(degrees: Tensor) -> Tensor:
    return torch.sin(degrees * (math.pi / 180))


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(degrees * (math.pi / 180))
