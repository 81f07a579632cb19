"""Where everything stands: a scene's own numbers, drawn from its seed.

Lengths are in units of about sixty pixels at 128 rows: the floor is y = 0, x points right and z
towards the camera. A layout is found that keeps every object in view for ever, beside the path of
the one that moves.
"""

import math
import random
from dataclasses import dataclass

from .scene import TRAVELLING, Scene
from .shapes import BOUND, HEIGHT, ROUND, WIDTH

__all__ = ["FOCAL", "PERIODS", "PITCH", "RADII", "TARGET_HEIGHT", "Stage", "patterned", "stage_of"]

FOCAL = 1.742  # focal length in picture heights: 32 degrees from top to bottom
DISTANCE = 3.75
PITCH = math.radians(8.5)
TARGET_HEIGHT = 0.79
ASPECT = 1.5
RADII = {"small": 0.355, "medium": 0.48, "large": 0.62}
GAP = 0.1
MARGIN = 0.1
PAN = 0.07
ARC = 0.2
ZOOM = 0.22
CROWD = {1: 1.0, 2: 1.05, 3: 1.18}


def _unlike_chunk(low: int, high: int, orders: tuple[int, ...] = (1, 2)) -> tuple[int, ...]:
    """Periods of which one chunk, or two, is far from a whole number of turns.

    ``orders``: besides the two chunks, turns of a shape that looks the same after a part of one.
    """

    def far(turns: float) -> bool:
        return abs(turns - round(turns)) > 0.08

    return tuple(
        period for period in range(low, high + 1) if all(far(33 * k / period) for k in orders)
    )


# Slow enough that a latent frame (four frames) moves an object by less than its own width.
PERIODS: dict[str, tuple[int, ...]] = {
    "rolls": _unlike_chunk(56, 76),
    "bounces": _unlike_chunk(36, 46),
    "orbits": _unlike_chunk(54, 75),
    "spins": _unlike_chunk(50, 75, (1, 2, 3, 4, 5)),
    "pulses": _unlike_chunk(38, 50),
    "falls": _unlike_chunk(48, 60),
    "swings": _unlike_chunk(44, 60),
    "drifts": _unlike_chunk(56, 76),
    "tumbles": _unlike_chunk(50, 75),
}
CAMERA_PERIODS = _unlike_chunk(72, 92)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The numbers of one scene: places of the objects, the motion's course and the camera's."""

    places: tuple[tuple[float, float], ...]
    yaws: tuple[float, ...]
    period: int
    phase: float
    direction: float
    reach: float
    lift: float
    depth: float
    distance: float
    azimuth: float
    camera_period: int
    camera_phase: float
    offset: tuple[float, float]


def _yaw(shape: str, motion: str | None, rng: random.Random) -> float:
    """A resting angle that shows what the shape is; rolling boxes roll over their edges."""
    side = rng.choice((-1.0, 1.0))
    if shape in ("cube", "pyramid"):
        return side * (0.3 if motion == "rolls" else rng.uniform(0.4, 0.6))
    return side * rng.uniform(0.1, 0.35)


def _half_width(scene: Scene, index: int) -> float:
    item = scene.objects[index]
    turns = index == 0 and scene.motion in ("rolls", "swings", "tumbles")
    grows = 1.2 if index == 0 and scene.motion == "pulses" else 1.0
    near = 1.1 if index == 0 and scene.motion == "orbits" else 1.0
    table = BOUND if turns else WIDTH
    return table[item.shape] * RADII[item.size] * grows * near


def _zone(
    scene: Scene, half: float, rng: random.Random
) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """Put the companions at the sides; what lies between is the moving object's."""
    left, right, places = -half, half, []
    side = rng.choice((-1.0, 1.0))
    for index in range(1, len(scene.objects)):
        width = _half_width(scene, index)
        if side < 0:
            places.append((left + width, rng.uniform(-0.15, 0.0)))
            left += 2 * width + GAP
        else:
            places.append((right - width, rng.uniform(-0.15, 0.0)))
            right -= 2 * width + GAP
        side = -side
    return (left, right), places


def stage_of(scene: Scene) -> Stage:
    """The layout of ``scene``; always the same for the same scene."""
    rng = random.Random(f"helios stage {scene.seed}")
    motion, main = scene.motion, scene.main
    distance = DISTANCE * CROWD[len(scene.objects)] * (1.06 if scene.camera == "pan" else 1.0)
    half = distance * ASPECT / (2 * FOCAL) - MARGIN - (PAN * distance * (scene.camera == "pan"))
    if scene.camera == "orbit":
        half *= 0.95
    (left, right), places = _zone(scene, half, rng)
    own = _half_width(scene, 0)
    room = max((right - left) / 2 - own, 0.02)
    if motion not in TRAVELLING:  # room it does not need brings the others nearer
        inward = 0.6 * max(room - 0.1, 0.0)
        places = [(x - math.copysign(inward, x), z) for x, z in places]
        left, right = (
            left + inward * any(x < 0 for x, _ in places),
            right - inward * any(x > 0 for x, _ in places),
        )
        room = max((right - left) / 2 - own, 0.02)
    radius = RADII[main.size]
    reach = min(room, {"orbits": 0.62, "swings": 0.8}.get(motion, 0.9))
    spare = room - reach if motion in TRAVELLING else min(room, 0.25)
    top = TARGET_HEIGHT + 0.277 * distance - 0.11
    standing = HEIGHT[main.shape] * radius
    centre = (left + right) / 2 + rng.uniform(-1, 1) * min(spare, 0.25)
    return Stage(
        places=((centre, -0.12 if motion == "orbits" else 0.05), *places),
        yaws=tuple(
            _yaw(item.shape, motion if index == 0 else None, rng)
            for index, item in enumerate(scene.objects)
        ),
        period=rng.choice(PERIODS[motion]),
        phase=rng.random(),
        direction=rng.choice((-1.0, 1.0)),
        reach=reach,
        lift=min(top - standing, 0.85),
        depth=0.38,
        distance=distance,
        azimuth=rng.uniform(-0.06, 0.06),
        camera_period=rng.choice(CAMERA_PERIODS),
        camera_phase=rng.random(),
        offset=(rng.uniform(0, 10), rng.uniform(0, 10)),
    )


def patterned(scene: Scene) -> bool:
    """Whether the moving object needs two tones for its turning to be seen."""
    turning = {"rolls": {"sphere", "torus"}, "spins": ROUND, "tumbles": {"sphere"}}
    return scene.main.shape in turning.get(scene.motion, ())
