"""Poses: where every object and the camera are at any frame, as a closed form of the frame index.

Nothing is integrated, so frame 10,000 costs what frame 0 costs, and a clip that starts anywhere is
the true continuation of the one before it. Angles and places are computed in double precision on
the CPU, where they are few.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scene import Scene
from .shapes import BOUND, support
from .stage import ARC, FOCAL, PAN, PITCH, RADII, TARGET_HEIGHT, ZOOM, Stage, patterned, stage_of
from .vocabulary import COLOURS, MATERIALS, MOTIONS, SETTINGS, SHAPES

__all__ = ["Poses", "boxes", "poses"]

TURN = 2 * math.pi
GRIP = {"sphere": 1.0, "torus": 1.0}


@dataclass(frozen=True, kw_only=True)
class Poses:
    """Objects and cameras of B scenes over T frames; O is the largest number of objects.

    ``centre`` [B,O,T,3], ``rotation`` [B,O,T,3,3] (local to world), ``scale`` [B,O,T], ``eye``
    [B,T,3], ``view`` [B,T,3,3] (rows: right, up, forward), all float32; ``present`` [B,O] bool;
    ``shape``, ``colour``, ``material``, ``pattern`` [B,O] and ``setting`` [B] int64; ``offset``
    [B,2] float32; ``frame`` [T] float32; ``steady`` [B] bool (the camera does not move).
    """

    centre: Tensor
    rotation: Tensor
    scale: Tensor
    eye: Tensor
    view: Tensor
    present: Tensor
    shape: Tensor
    colour: Tensor
    material: Tensor
    pattern: Tensor
    setting: Tensor
    offset: Tensor
    frame: Tensor
    steady: Tensor

    def to(self, device: torch.device | str) -> "Poses":
        """The same on another device."""
        return Poses(**{name: value.to(device) for name, value in vars(self).items()})


def _rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation matrices about unit axes [...,3] by angles [...]: [...,3,3] (Rodrigues)."""
    x, y, z = axis.unbind(-1)
    c, s = angle.cos(), angle.sin()
    k = 1 - c
    entries = (
        (c + x * x * k, x * y * k - z * s, x * z * k + y * s),
        (y * x * k + z * s, c + y * y * k, y * z * k - x * s),
        (z * x * k - y * s, z * y * k + x * s, c + z * z * k),
    )
    return torch.stack([entry for row in entries for entry in row], -1).unflatten(-1, (3, 3))


def _drop(u: Tensor) -> Tensor:
    """Height over one fall, from 1: a drop, a small rebound, a rest, a slow way up."""
    fall = 1 - (u / 0.3) ** 2
    hop = ((u - 0.3) / 0.16).clamp(0, 1)
    rise = ((u - 0.54) / 0.46).clamp(0, 1)
    return torch.where(u < 0.3, fall, 0.5 * hop * (1 - hop)) + rise * rise * (3 - 2 * rise)


SWING = 0.6  # radians to either side
REST = -1
AXES = {"spins": (0.0, 1.0, 0.0), "tumbles": (0.8, 0.2, 0.55)}


def _axis(motion: str) -> tuple[float, ...]:
    axis = AXES.get(motion, (0.0, 0.0, 1.0))
    return tuple(c / math.hypot(*axis) for c in axis)


def _cast_row(scene: Scene, stage: Stage, index: int) -> tuple[float, ...]:
    """The numbers that one object's course is a function of, in the order of ``_objects``."""
    item, motion = scene.objects[index], scene.motion if index == 0 else ""
    radius, bound = RADII[item.size], BOUND[item.shape] * RADII[item.size]
    low = max(bound + 0.06, 0.5) if motion == "swings" else max(bound + 0.12, 0.72)
    return (
        MOTIONS.index(motion) if motion else REST,
        SHAPES.index(item.shape),
        *stage.places[index],
        stage.yaws[index],
        radius,
        low,
        radius * GRIP.get(item.shape, 0.8),
        1 / stage.period,
        stage.phase,
        stage.direction,
        stage.reach,
        stage.lift,
        stage.depth,
        *_axis(motion),
    )


def _objects(rows: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [B,O,T,3], rotations [B,O,T,3,3] and scales [B,O,T] of objects with ``rows``."""
    columns = rows[..., None].unbind(-2)
    motion, shape, place_x, place_z, yaw, radius, low, grip = columns[:8]
    rate, phase, direction, reach, lift, depth = columns[8:14]
    turns = frame * rate + phase
    u = turns - turns.floor()
    w = TURN * u
    sin, cos = w.sin(), w.cos()
    zero = torch.zeros_like(w)
    tilt = SWING * sin
    cord = reach / math.sin(SWING)

    def pick(default: Tensor, **cases: Tensor) -> Tensor:
        for name, value in cases.items():
            default = torch.where(motion == MOTIONS.index(name), value, default)
        return default

    x = pick(zero, rolls=reach * sin, drifts=reach * sin, orbits=reach * cos)
    x = pick(x, swings=cord * tilt.sin())
    z = pick(zero, orbits=depth * direction * sin)
    raised = pick(zero, bounces=lift * 4 * u * (1 - u), falls=lift * _drop(u))
    hover = pick(
        zero,
        swings=low + cord * (1 - tilt.cos()),
        drifts=low + 0.12 + 0.05 * (2 * w + 1).sin(),
        tumbles=low + 0.05 * sin,
    )
    scale = radius * pick(torch.ones_like(w), pulses=0.95 + 0.25 * sin)
    angle = pick(zero, rolls=-x / grip, spins=direction * w, swings=tilt, tumbles=direction * w)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=rows.dtype)
    axes = rows[..., None, 14:17]
    rotation = _rotation(axes, angle) @ _rotation(up, yaw)
    down = -rotation[..., 1, :]
    reach_down = support(shape, (down[..., 0], down[..., 1], down[..., 2]))
    height = torch.where(hover > 0, hover, scale * reach_down + raised)
    return torch.stack([place_x + x, height, place_z + z], -1), rotation, scale


def _backward(azimuth: Tensor) -> Tensor:
    """Unit vectors from the target to a camera at this azimuth."""
    flat, up = math.cos(PITCH), torch.full_like(azimuth, math.sin(PITCH))
    return torch.stack([azimuth.sin() * flat, up, azimuth.cos() * flat], -1)


def _cameras(
    scenes: Sequence[Scene], stages: Sequence[Stage], frame: Tensor
) -> tuple[Tensor, Tensor]:
    """Eyes [B,T,3] and views [B,T,3,3]."""
    rows = torch.tensor(
        [
            (
                stage.azimuth,
                stage.distance,
                1 / stage.camera_period,
                stage.camera_phase,
                ARC * (scene.camera == "orbit"),
                PAN * (scene.camera == "pan"),
                ZOOM * (scene.camera == "zoom"),
            )
            for scene, stage in zip(scenes, stages, strict=True)
        ],
        dtype=frame.dtype,
    )
    azimuth, distance, rate, phase, arc, pan, zoom = rows[..., None].unbind(-2)
    swing = (TURN * (frame * rate + phase)).sin()
    azimuth = azimuth + arc * swing
    turn = azimuth + pan * swing
    target = torch.tensor([0.0, TARGET_HEIGHT, 0.0], dtype=frame.dtype)
    far = distance * (1 + zoom * 0.5 * (1 + swing))
    eye = target + far[..., None] * _backward(azimuth)
    forward = -_backward(turn)
    right = torch.stack([turn.cos(), torch.zeros_like(turn), -turn.sin()], -1)
    up = torch.linalg.cross(right, forward)
    return eye, torch.stack([right, up, forward], -2)


ABSENT = (REST, 0, 0.0, 0.0, 0.0, 0.1, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def poses(scenes: Sequence[Scene], *, start: int, frames: int) -> Poses:
    """Everything that moves, for ``frames`` frames from frame ``start`` on, on the CPU."""
    frame = torch.arange(start, start + frames, dtype=torch.float64)
    slots = max(len(scene.objects) for scene in scenes)
    stages = [stage_of(scene) for scene in scenes]
    rows, labels, present = [], [], []
    for scene, stage in zip(scenes, stages, strict=True):
        count = len(scene.objects)
        empty = slots - count
        rows.append([_cast_row(scene, stage, o) for o in range(count)] + [ABSENT] * empty)
        labels.append([_labels(scene, o) for o in range(count)] + [(0, 0, 0, 0)] * empty)
        present.append([True] * count + [False] * empty)
    centre, rotation, scale = _objects(torch.tensor(rows, dtype=torch.float64), frame)
    eye, view = _cameras(scenes, stages, frame)
    shape, colour, material, pattern = torch.tensor(labels).unbind(-1)
    return Poses(
        centre=centre.float(),
        rotation=rotation.float(),
        scale=scale.float(),
        eye=eye.float(),
        view=view.float(),
        present=torch.tensor(present),
        shape=shape,
        colour=colour,
        material=material,
        pattern=pattern,
        setting=torch.tensor([SETTINGS.index(scene.setting) for scene in scenes]),
        offset=torch.tensor([stage.offset for stage in stages]),
        frame=frame.float(),
        steady=torch.tensor([scene.camera == "still" for scene in scenes]),
    )


def _labels(scene: Scene, index: int) -> tuple[int, int, int, int]:
    """Numbers of an object's shape, colour, material, and whether it wears two tones."""
    item = scene.objects[index]
    return (
        SHAPES.index(item.shape),
        COLOURS.index(item.colour),
        MATERIALS.index(item.material),
        int(index == 0 and patterned(scene)),
    )


def boxes(pose: Poses, *, height: int = 128, width: int = 192) -> Tensor:
    """Boxes around the objects in the picture, in pixels: left, top, right, bottom [B,O,T,4].

    Taken from how far each shape reaches along the camera's axes, with its nearer half as depth: a
    few pixels generous. Boxes of absent objects mean nothing (see ``Poses.present``).
    """
    local = torch.einsum("btij,botj->boti", pose.view, pose.centre - pose.eye[:, None])
    axes = torch.einsum("btij,botjk->botik", pose.view, pose.rotation)
    shape = pose.shape[..., None]
    right, up = axes[..., 0, :], axes[..., 1, :]
    reach = [
        pose.scale * support(shape, (n[..., 0], n[..., 1], n[..., 2]))
        for n in (-right, up, right, -up)
    ]
    x, y, depth = local.unbind(-1)
    near = FOCAL * height / (depth - 0.25 * pose.scale)
    mid_x, mid_y = width / 2 + FOCAL * height * x / depth, height / 2 - FOCAL * height * y / depth
    left, top, far_right, bottom = (r * near for r in reach)
    return torch.stack([mid_x - left, mid_y - top, mid_x + far_right, mid_y + bottom], -1)
