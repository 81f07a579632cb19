"""The vocabulary as a page for users, made from the very tables that captions are written from."""

import random
from collections.abc import Iterable

from .captions import CONNECTORS, RESTS, VOCABULARY, caption
from .scene import sample_scenes
from .vocabulary import (
    CAMERA_PHRASES,
    COLOUR_WORDS,
    MATERIAL_WORDS,
    MOTION_VERBS,
    SETTING_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
)

__all__ = ["vocabulary_document"]

INTRODUCTION = """\
# The words of the scene world

The bundled tiny model was trained on a small world of moving objects. It understands sentences made
of the words below; any order that reads naturally works, and whatever is left out is chosen for
you. One to three objects of different colours make a scene: the first one named moves, those after
"{connectors}" rest beside it.

Words outside this list mean nothing to the tiny model. Upper and lower case are the same.

This page is made by `python -m helios.data.scenes`; a test keeps it up to date.
"""


def _row(name: str, words: Iterable[str]) -> str:
    return f"| {name} | {', '.join(words)} |"


def _table(title: str, note: str, words: dict[str, tuple[str, ...]]) -> list[str]:
    rows = [_row(name, group) for name, group in words.items()]
    return ["", f"## {title}", "", note, "", "| meaning | say |", "|---|---|", *rows]


def vocabulary_document() -> str:
    """The whole page, in Markdown; the same at every call."""
    motions = {
        motion: tuple(
            f"{verb.finite} / {verb.participle}"
            + (f" ({'; '.join(verb.tails)})" if verb.tails else "")
            for verb in verbs
        )
        for motion, verbs in MOTION_VERBS.items()
    }
    rng = random.Random("helios vocabulary")
    examples = [f"- {caption(scene, rng)}" for scene in sample_scenes(12, seed=1, split="all")]
    lines = [
        INTRODUCTION.format(connectors='", "'.join(CONNECTORS)).rstrip(),
        *_table("Colours", "Every object has one.", COLOUR_WORDS),
        *_table("Shapes", "Every object has one.", SHAPE_WORDS),
        *_table("Sizes", "May be left out.", SIZE_WORDS),
        *_table("Materials", "May be left out.", MATERIAL_WORDS),
        *_table("Motions", "What the first object does; what may follow in brackets.", motions),
        *_table("Settings", "Where it happens.", SETTING_PHRASES),
        *_table("Camera", "May be left out; the camera then mostly rests.", CAMERA_PHRASES),
        "",
        "## Examples",
        "",
        "- a red ball bounces on green grass",
        *examples,
        "",
        "## Every word",
        "",
        f"{len(VOCABULARY)} words and marks. An object that rests may also be said to "
        f'"{RESTS[0]}", "{RESTS[1]}" or "{RESTS[2]}" nearby, after "while".',
        "",
        " ".join(word for word in VOCABULARY if word.isalpha()),
    ]
    return "\n".join(lines) + "\n"
