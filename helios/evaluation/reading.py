"""What a judge says it sees in a video, and how that compares with the scene behind the caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helios.data.scenes import Description, Scene

__all__ = ["ObjectReading", "Reading", "reading_of", "stated_verdicts", "verdicts"]


@dataclass(frozen=True)
class ObjectReading:
    """One object as seen; its colour is its key, for no two objects of a scene share one."""

    shape: str
    size: str
    material: str


@dataclass(frozen=True)
class Reading:
    """Everything read off the frames of one chunk.

    Attributes:
        objects: colour to object, for every colour that is present.
        main: colour of the object that moves.
        motion: what that object does.
        setting: where.
        camera: what the camera does.
    """

    objects: Mapping[str, ObjectReading]
    main: str
    motion: str
    setting: str
    camera: str


def reading_of(scene: Scene) -> Reading:
    """The reading that a faultless judge gives of ``scene``."""
    objects = {o.colour: ObjectReading(o.shape, o.size, o.material) for o in scene.objects}
    main = scene.objects[0].colour
    return Reading(objects, main, scene.motion, scene.setting, scene.camera)


def verdicts(
    scene: Scene, reading: Reading, *, size: bool = True, material: bool = True, camera: bool = True
) -> dict[str, bool]:
    """Right or wrong for each attribute of ``accuracy.ATTRIBUTES`` that can be asked.

    An object is looked up by its colour, so an object of the wrong colour has the wrong shape too.

    Args:
        scene: the truth.
        reading: what was seen.
        size: whether the caption states the main object's size; otherwise it is not judged.
        material: likewise for its material.
        camera: likewise for the camera.
    """
    main = scene.objects[0]
    seen = reading.objects.get(main.colour)
    result = {
        "colour set": {o.colour for o in scene.objects} == set(reading.objects),
        "main colour": reading.main == main.colour and seen is not None,
        "shape": seen is not None and seen.shape == main.shape,
        "every shape": all(
            o.colour in reading.objects and reading.objects[o.colour].shape == o.shape
            for o in scene.objects
        ),
        "motion": reading.motion == scene.motion,
        "setting": reading.setting == scene.setting,
        "count": len(reading.objects) == len(scene.objects),
    }
    four = ("main colour", "shape", "motion", "setting")
    result["all four"] = all(result[name] for name in four)
    if size:
        result["size"] = seen is not None and seen.size == main.size
    if material:
        result["material"] = seen is not None and seen.material == main.material
    if camera:
        result["camera"] = reading.camera == scene.camera
    return result


def stated_verdicts(
    scene: Scene, reading: Reading, stated: Description | None = None
) -> dict[str, bool]:
    """The verdicts of what a caption says of ``scene``.

    Args:
        scene: the truth.
        reading: what was seen.
        stated: what the caption says; size, material and camera count only where they are said.
            Without it they always count: the video is then a render of the scene itself.
    """
    if stated is None:
        return verdicts(scene, reading)
    main = stated.objects[0]
    return verdicts(
        scene,
        reading,
        size=main.size is not None,
        material=main.material is not None,
        camera=stated.camera is not None,
    )
