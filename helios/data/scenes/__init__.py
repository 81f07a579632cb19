"""An endless, seeded world of small moving scenes with captions, rendered in tensors."""

from .captions import (
    VOCABULARY,
    Description,
    ObjectDescription,
    caption,
    parse_caption,
    write,
)
from .document import vocabulary_document
from .motion import Poses, boxes, poses
from .renderer import render
from .scene import (
    Scene,
    SceneObject,
    Split,
    held_out,
    sample_scene,
    sample_scenes,
    scene_stream,
)
from .vocabulary import CAMERAS, COLOURS, MATERIALS, MOTIONS, SETTINGS, SHAPES, SIZES

__all__ = [
    "CAMERAS",
    "COLOURS",
    "MATERIALS",
    "MOTIONS",
    "SETTINGS",
    "SHAPES",
    "SIZES",
    "VOCABULARY",
    "Description",
    "ObjectDescription",
    "Poses",
    "Scene",
    "SceneObject",
    "Split",
    "boxes",
    "caption",
    "held_out",
    "parse_caption",
    "poses",
    "render",
    "sample_scene",
    "sample_scenes",
    "scene_stream",
    "vocabulary_document",
    "write",
]
