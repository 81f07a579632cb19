"""A scene: what stands on the stage, what moves and how; and an endless seeded supply of them.

A scene is a small frozen value. Everything that a caption does not say (places, phases, directions,
speeds) follows from its ``seed``, so that a scene and a frame index fix a picture.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .vocabulary import CAMERAS, COLOURS, MATERIALS, MOTIONS, SETTINGS, SHAPES, SIZES

__all__ = [
    "CAMERAS_OF_MOTION",
    "TRAVELLING",
    "Scene",
    "SceneObject",
    "Split",
    "held_out",
    "sample_scene",
    "sample_scenes",
    "scene_stream",
]

Split = Literal["train", "test", "all"]

HELD_OUT_ONE_IN = 11
MOVING_CAMERA = 0.45
TRAVELLING = frozenset({"rolls", "orbits", "swings", "drifts"})

# A moving camera is left out where it looks like the motion itself: a zoom like a pulse, a pan like
# anything that travels, an arc like a spin.
CAMERAS_OF_MOTION: dict[str, tuple[str, ...]] = {
    "rolls": ("zoom",),
    "bounces": ("pan", "orbit", "zoom"),
    "orbits": (),
    "spins": ("pan", "zoom"),
    "pulses": ("pan", "orbit"),
    "falls": ("pan", "orbit", "zoom"),
    "swings": ("zoom",),
    "drifts": ("zoom",),
    "tumbles": ("pan", "orbit", "zoom"),
}


def _check(kind: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{kind} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object: four words."""

    colour: str
    shape: str
    size: str
    material: str

    def __post_init__(self) -> None:
        _check("colour", self.colour, COLOURS)
        _check("shape", self.shape, SHAPES)
        _check("size", self.size, SIZES)
        _check("material", self.material, MATERIALS)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One to three objects of different colours; the first performs ``motion``, the others rest.

    Raises:
        ValueError: for an unknown attribute, a colour used twice, more than three objects.
    """

    objects: tuple[SceneObject, ...]
    motion: str
    setting: str
    camera: str
    seed: int

    def __post_init__(self) -> None:
        _check("motion", self.motion, MOTIONS)
        _check("setting", self.setting, SETTINGS)
        _check("camera", self.camera, CAMERAS)
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"a scene has one to three objects, got {len(self.objects)}")
        if len({item.colour for item in self.objects}) < len(self.objects):
            raise ValueError("all objects of a scene must have different colours")

    @property
    def main(self) -> SceneObject:
        """The object that moves."""
        return self.objects[0]

    @property
    def companions(self) -> tuple[SceneObject, ...]:
        """The objects that rest beside it."""
        return self.objects[1:]


def held_out(colour: str, shape: str, motion: str, setting: str) -> bool:
    """Whether this combination of the moving object is kept from training (one in eleven)."""
    key = f"{colour} {shape} {motion} {setting}".encode()
    return zlib.crc32(key) % HELD_OUT_ONE_IN == 0


def _sizes(count: int, motion: str, rng: random.Random) -> tuple[str, ...]:
    """Sizes that leave the moving object room to move."""
    if count == 1:
        return (rng.choice(SIZES),)
    if motion == "rolls":  # less room than this and it would rock rather than roll
        return ("small",) * 3 if count == 3 else (rng.choice(("small", "medium")), "small")
    if count == 3:
        return (rng.choice(("small", "medium")), "small", rng.choice(("small", "medium")))
    main = rng.choice(SIZES)
    if main == "large":
        return main, "small"
    return main, rng.choice(("small", "medium") if motion in TRAVELLING else SIZES)


def _draw(rng: random.Random) -> Scene:
    count = rng.choices((1, 2, 3), (0.55, 0.35, 0.10))[0]
    motion = rng.choice(MOTIONS)
    objects = tuple(
        SceneObject(
            colour=colour, shape=rng.choice(SHAPES), size=size, material=rng.choice(MATERIALS)
        )
        for colour, size in zip(rng.sample(COLOURS, count), _sizes(count, motion, rng), strict=True)
    )
    cameras = CAMERAS_OF_MOTION[motion]
    if count == 3:  # the row of three fills the frame: a pan would push its ends out
        cameras = tuple(camera for camera in cameras if camera != "pan")
    moving = bool(cameras) and rng.random() < MOVING_CAMERA
    return Scene(
        objects=objects,
        motion=motion,
        setting=rng.choice(SETTINGS),
        camera=rng.choice(cameras) if moving else "still",
        seed=rng.getrandbits(32),
    )


def sample_scene(index: int, *, seed: int = 0, split: Split = "train") -> Scene:
    """Scene number ``index`` of the endless list that ``seed`` and ``split`` name.

    Every number can be asked for directly, which makes resuming a stream trivial.

    Raises:
        ValueError: for an unknown split.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split must be train, test or all, got {split!r}")
    rng = random.Random(f"helios scenes {seed} {split} {index}")
    while True:
        scene = _draw(rng)
        hidden = held_out(scene.main.colour, scene.main.shape, scene.motion, scene.setting)
        if split == "all" or hidden == (split == "test"):
            return scene


def sample_scenes(
    n: int, seed: int = 0, *, split: Split = "train", start: int = 0
) -> tuple[Scene, ...]:
    """Scenes ``start`` to ``start + n`` of the endless list that ``seed`` and ``split`` name.

    "train" never holds a held-out combination of colour, shape, motion and setting of the moving
    object, "test" only such, "all" both.
    """
    return tuple(sample_scene(index, seed=seed, split=split) for index in range(start, start + n))


def scene_stream(seed: int = 0, *, split: Split = "train", start: int = 0) -> Iterator[Scene]:
    """The endless list itself, from number ``start`` on."""
    index = start
    while True:
        yield sample_scene(index, seed=seed, split=split)
        index += 1
