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
from .vocabulary import COLOURS, MATERIALS, SETTINGS, SHAPES

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


def _rotation(axis: tuple[float, float, float], angle: Tensor) -> Tensor:
    """Rotation matrices about a fixed axis (Rodrigues): [...] to [...,3,3]."""
    x, y, z = (c / math.sqrt(sum(a * a for a in axis)) for c in axis)
    c, s = angle.cos(), angle.sin()
    k = 1 - c
    rows = (
        (c + x * x * k, x * y * k - z * s, x * z * k + y * s),
        (y * x * k + z * s, c + y * y * k, y * z * k - x * s),
        (z * x * k - y * s, z * y * k + x * s, c + z * z * k),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _drop(u: Tensor) -> Tensor:
    """Height over one fall, from 1: a quick drop, a small rebound, a rest, a slow way up."""
    fall = 1 - (u / 0.22) ** 2
    hop = ((u - 0.22) / 0.14).clamp(0, 1)
    rise = ((u - 0.5) / 0.5).clamp(0, 1)
    return torch.where(u < 0.22, fall, 0.5 * hop * (1 - hop)) + rise * rise * (3 - 2 * rise)


@dataclass(frozen=True)
class _Course:
    """The moving object over T frames, before it is set on the floor: all [T], float64."""

    x: Tensor
    z: Tensor
    lift: Tensor
    hover: Tensor
    scale: Tensor
    rotation: Tensor
    floats: bool


def _course(scene: Scene, stage: Stage, frame: Tensor) -> _Course:
    main = scene.main
    turns = frame / stage.period + stage.phase
    u = turns - turns.floor()
    w = TURN * u
    zero, one = torch.zeros_like(w), torch.ones_like(w)
    radius = RADII[main.size]
    x, z, lift, hover, scale = zero, zero, zero, zero, one
    rotation, floats = _rotation((0, 1, 0), zero), False
    air = max(BOUND[main.shape] * radius + 0.12, 0.72)
    match scene.motion:
        case "rolls":
            x = stage.reach * w.sin()
            rotation = _rotation((0, 0, 1), -x / (radius * GRIP.get(main.shape, 0.8)))
        case "bounces":
            lift = stage.lift * 4 * u * (1 - u)
        case "orbits":
            x = stage.reach * w.cos()
            z = stage.depth * stage.direction * w.sin()
        case "spins":
            rotation = _rotation((0, 1, 0), stage.direction * w)
        case "pulses":
            scale = 0.95 + 0.25 * w.sin()
        case "falls":
            lift = stage.lift * _drop(u)
        case "swings":
            angle = 0.6 * w.sin()
            cord = stage.reach / math.sin(0.6)
            x = cord * angle.sin()
            hover = max(BOUND[main.shape] * radius + 0.06, 0.5) + cord * (1 - angle.cos())
            rotation, floats = _rotation((0, 0, 1), angle), True
        case "drifts":
            x = stage.reach * w.sin()
            hover = air + 0.12 + 0.05 * (2 * w + 1).sin()
            floats = True
        case "tumbles":
            hover = air + 0.05 * w.sin()
            rotation = _rotation((0.8, 0.2, 0.55), stage.direction * w)
            floats = True
    return _Course(x, z, lift, hover, scale, rotation, floats)


def _object(scene: Scene, stage: Stage, index: int, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre [T,3], rotation [T,3,3] and scale [T] of one object."""
    item, (x, z), yaw = scene.objects[index], stage.places[index], stage.yaws[index]
    rest = _rotation((0, 1, 0), torch.full_like(frame, yaw))
    size = RADII[item.size]
    number = torch.tensor(SHAPES.index(item.shape))
    if index > 0:
        one = torch.ones_like(frame)
        height = size * support(number, (0 * one, -one, 0 * one))
        return torch.stack([x * one, height, z * one], -1), rest, size * one
    course = _course(scene, stage, frame)
    rotation = course.rotation @ rest
    scale = size * course.scale
    down = -rotation[..., 1, :]
    reach = support(number, (down[..., 0], down[..., 1], down[..., 2]))
    height = course.hover if course.floats else scale * reach + course.lift
    return torch.stack([x + course.x, height, z + course.z], -1), rotation, scale


def _camera(scene: Scene, stage: Stage, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Eye [T,3] and view [T,3,3]."""
    swing = (TURN * (frame / stage.camera_period + stage.camera_phase)).sin()
    azimuth = stage.azimuth + (ARC * swing if scene.camera == "orbit" else 0 * swing)
    far = 1 + ZOOM * 0.5 * (1 + swing) if scene.camera == "zoom" else torch.ones_like(swing)
    turn = azimuth + (PAN * swing if scene.camera == "pan" else 0 * swing)

    def backward(angle: Tensor) -> Tensor:
        flat, up = math.cos(PITCH), torch.full_like(angle, math.sin(PITCH))
        return torch.stack([angle.sin() * flat, up, angle.cos() * flat], -1)

    target = torch.tensor([0.0, TARGET_HEIGHT, 0.0], dtype=frame.dtype)
    eye = target + stage.distance * far[:, None] * backward(azimuth)
    forward = -backward(turn)
    right = torch.stack([turn.cos(), torch.zeros_like(turn), -turn.sin()], -1)
    up = torch.linalg.cross(right, forward)
    return eye, torch.stack([right, up, forward], -2)


def poses(scenes: Sequence[Scene], *, start: int, frames: int) -> Poses:
    """Everything that moves, for ``frames`` frames from frame ``start`` on, on the CPU."""
    frame = torch.arange(start, start + frames, dtype=torch.float64)
    slots = max(len(scene.objects) for scene in scenes)
    count = len(scenes)
    centre = torch.zeros(count, slots, frames, 3)
    centre[..., 1] = 1.0
    rotation = torch.eye(3).expand(count, slots, frames, 3, 3).clone()
    scale = torch.full((count, slots, frames), 0.1)
    eye, view = torch.zeros(count, frames, 3), torch.zeros(count, frames, 3, 3)
    labels = torch.zeros(4, count, slots, dtype=torch.int64)
    present = torch.zeros(count, slots, dtype=torch.bool)
    stages = [stage_of(scene) for scene in scenes]
    for b, (scene, stage) in enumerate(zip(scenes, stages, strict=True)):
        eye[b], view[b] = _camera(scene, stage, frame)
        for o, item in enumerate(scene.objects):
            centre[b, o], rotation[b, o], scale[b, o] = _object(scene, stage, o, frame)
            present[b, o] = True
            labels[0, b, o] = SHAPES.index(item.shape)
            labels[1, b, o] = COLOURS.index(item.colour)
            labels[2, b, o] = MATERIALS.index(item.material)
            labels[3, b, o] = int(o == 0 and patterned(scene))
    return Poses(
        centre=centre,
        rotation=rotation,
        scale=scale,
        eye=eye,
        view=view,
        present=present,
        shape=labels[0],
        colour=labels[1],
        material=labels[2],
        pattern=labels[3],
        setting=torch.tensor([SETTINGS.index(scene.setting) for scene in scenes]),
        offset=torch.tensor([stage.offset for stage in stages]),
        frame=frame.float(),
        steady=torch.tensor([scene.camera == "still" for scene in scenes]),
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
