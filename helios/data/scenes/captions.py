"""Scenes put into words, and words read back.

The grammar writes one sentence per scene: who does what, next to whom, where, how the camera moves,
in several orders. What people leave out is left out at times: size, material, camera. The reader is
tolerant: it looks for known words in any sentence and lets adjectives belong to the noun after
them.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .scene import Scene, SceneObject
from .vocabulary import (
    CAMERA_PHRASES,
    COLOUR_WORDS,
    MATERIAL_WORDS,
    MOTION_VERBS,
    SETTING_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
)

__all__ = ["VOCABULARY", "Description", "ObjectDescription", "caption", "parse_caption", "write"]

STATE_SIZE = 0.65
STATE_MATERIAL = 0.45
STATE_CAMERA = {"still": 0.15, "pan": 0.85, "orbit": 0.85, "zoom": 0.85}
PLAIN_WORD = 0.75
PLAIN_SHAPE = 0.5
TAIL = 0.35

CONNECTORS = ("next to", "beside", "near", "by")
RESTS = ("rests", "waits", "stands")
FRAMES = ("there is", "we see")


@dataclass(frozen=True, kw_only=True)
class ObjectDescription:
    """What a sentence says of one object; None where it says nothing."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    material: str | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a sentence says of a scene; ``objects[0]`` is the one that moves."""

    objects: tuple[ObjectDescription, ...] = ()
    motion: str | None = None
    setting: str | None = None
    camera: str | None = None


def _pick(words: tuple[str, ...], rng: random.Random, plain: float = PLAIN_WORD) -> str:
    return words[0] if len(words) == 1 or rng.random() < plain else rng.choice(words[1:])


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _noun(
    item: SceneObject, rng: random.Random, participle: str = ""
) -> tuple[str, ObjectDescription]:
    size = rng.random() < STATE_SIZE
    material = rng.random() < STATE_MATERIAL
    adjectives = []
    if size:
        adjectives.append(_pick(SIZE_WORDS[item.size], rng))
    if material:
        adjectives.append(_pick(MATERIAL_WORDS[item.material], rng))
    if rng.random() < 0.2:
        adjectives.reverse()
    if participle:
        adjectives.append(participle)
    adjectives.append(_pick(COLOUR_WORDS[item.colour], rng, 0.85))
    adjectives.append(_pick(SHAPE_WORDS[item.shape], rng, PLAIN_SHAPE))
    stated = ObjectDescription(
        colour=item.colour,
        shape=item.shape,
        size=item.size if size else None,
        material=item.material if material else None,
    )
    return _article(" ".join(adjectives)), stated


def _sentence(parts: dict[str, str], rng: random.Random) -> str:
    """Put the parts in one of the usual orders; empty parts leave no trace."""
    who, does, beside, where = (parts[key] for key in ("who", "does", "beside", "where"))
    orders = [
        f"{who} {does} {beside} {where}",
        f"{who} {does} {where} {beside}",
        f"{where}, {who} {does} {beside}",
    ]
    if not beside:
        orders.append(f"{who} {where} {does}")
    else:
        orders.append(f"{beside}, {who} {does} {where}")
    return rng.choice(orders)


def write(scene: Scene, rng: random.Random) -> tuple[str, Description]:
    """A caption of ``scene`` and exactly what it states (at most 60 words and marks)."""
    verb = rng.choice(MOTION_VERBS[scene.motion])
    tail = f" {rng.choice(verb.tails)}" if verb.tails and rng.random() < TAIL else ""
    form = rng.choices(("finite", "is", "participle", "adjective"), (5, 2, 1.5, 1.5))[0]
    who, main = _noun(scene.main, rng, verb.participle if form == "adjective" else "")
    does = {
        "finite": f"{verb.finite}{tail}",
        "is": f"is {verb.participle}{tail}",
        "participle": f"{verb.participle}{tail}",
        "adjective": "",
    }[form]
    if form in ("participle", "adjective") and rng.random() < 0.3:
        who = f"{rng.choice(FRAMES)} {who}"
    rest = [_noun(item, rng) for item in scene.companions]
    others = " and ".join(words for words, _ in rest)
    parts = {"who": who, "does": does, "where": _pick(SETTING_PHRASES[scene.setting], rng, 0.3)}
    if others and rng.random() < 0.2:
        verb_form = rng.choice(RESTS) if len(rest) == 1 else rng.choice(RESTS)[:-1]
        text = f"{_sentence(parts | {'beside': ''}, rng)} while {others} {verb_form} nearby"
    else:
        beside = f"{rng.choice(CONNECTORS)} {others}" if others else ""
        text = _sentence(parts | {"beside": beside}, rng)
    camera = rng.random() < STATE_CAMERA[scene.camera]
    if camera:
        text = f"{text}, {rng.choice(CAMERA_PHRASES[scene.camera])}"
    text = re.sub(r"\s+", " ", text).replace(" ,", ",").strip()
    if rng.random() < 0.3:
        text += "."
    stated = Description(
        objects=(main, *(words for _, words in rest)),
        motion=scene.motion,
        setting=scene.setting,
        camera=scene.camera if camera else None,
    )
    return text, stated


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many captions of ``scene``, drawn with ``rng``; lower case, one sentence."""
    return write(scene, rng)[0]


def _tokens(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[,.]", text.lower())


def _grammar_words() -> Iterator[str]:
    for table in (COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, MATERIAL_WORDS):
        for words in table.values():
            yield from words
    for phrases in (*SETTING_PHRASES.values(), *CAMERA_PHRASES.values()):
        yield from phrases
    for verbs in MOTION_VERBS.values():
        for verb in verbs:
            yield from (verb.finite, verb.participle, *verb.tails)
    yield from (*CONNECTORS, *RESTS, *(word[:-1] for word in RESTS), *FRAMES)
    yield "a an and is while nearby , ."


VOCABULARY: tuple[str, ...] = tuple(
    sorted({word for phrase in _grammar_words() for word in _tokens(phrase)})
)
"""Every word, and the two punctuation marks, that a caption may contain; sorted."""


def _reverse(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: value for value, words in table.items() for word in words}


def _keys(phrases: dict[str, Iterable[str]]) -> dict[str, str]:
    """Words that occur in the phrases of exactly one value of this table and mean it."""
    owners: dict[str, set[str]] = {}
    for value, group in phrases.items():
        for word in {word for phrase in group for word in _tokens(phrase)}:
            owners.setdefault(word, set()).add(value)
    plain = set(_reverse(COLOUR_WORDS)) | _FUNCTION_WORDS
    return {
        word: next(iter(values))
        for word, values in owners.items()
        if len(values) == 1 and word not in plain
    }


_FUNCTION_WORDS = frozenset(
    _tokens(
        "a an and is in on at the of with under against floor around camera slowly "
        "sky landscape gentle plain bare glow"
    )
)
_COLOUR, _SHAPE = _reverse(COLOUR_WORDS), _reverse(SHAPE_WORDS)
_SIZE, _MATERIAL = _reverse(SIZE_WORDS), _reverse(MATERIAL_WORDS)
_SETTING = _keys(dict(SETTING_PHRASES))
_CAMERA = _keys(dict(CAMERA_PHRASES))
_MOTION = {
    word: motion
    for motion, verbs in MOTION_VERBS.items()
    for verb in verbs
    for form in (verb.finite, verb.participle)
    for word in _tokens(form)
    if word != "and"
}
_BESIDE = {"next", "beside", "near", "by", "with", "while"}
_ARTICLES = {"a", "an", "the"}
_CAMERA_VERBS = {  # what people also say of a camera, besides the grammar's own words
    "orbits": "orbit",
    "orbiting": "orbit",
    "circles": "orbit",
    "circling": "orbit",
    "rotates": "orbit",
    "rotating": "orbit",
    "still": "still",
}


def _read_camera(words: list[str]) -> tuple[str | None, list[str]]:
    """The camera of the clause that names one, and the words without its verbs."""
    if "camera" not in words:
        return None, words
    at = words.index("camera")
    for near in (*range(at + 1, min(at + 4, len(words))), *range(at - 1, max(at - 3, -1), -1)):
        value = _CAMERA.get(words[near]) or _CAMERA_VERBS.get(words[near])
        if value:
            return value, [word for i, word in enumerate(words) if i not in (at, near)]
    return None, words


def _read_objects(words: list[str]) -> tuple[ObjectDescription, ...]:
    """Noun phrases in order, the moving object first."""
    mains: list[ObjectDescription] = []
    others: list[ObjectDescription] = []
    current, beside = ObjectDescription(), False
    for word in words:
        if word in _BESIDE:
            beside, current = True, ObjectDescription()
        elif word in _COLOUR:
            current = replace(current, colour=_COLOUR[word])
        elif word in _SIZE:
            current = replace(current, size=_SIZE[word])
        elif word in _MATERIAL:
            current = replace(current, material=_MATERIAL[word])
        elif word in _SHAPE:
            (others if beside else mains).append(replace(current, shape=_SHAPE[word]))
            current = ObjectDescription()
        elif word in {",", "."}:
            current, beside = ObjectDescription(), False
        elif word in _SETTING or word in _ARTICLES:  # "on green grass" colours no object
            current = ObjectDescription()
    return (*mains, *others)


def parse_caption(text: str) -> Description:
    """Read the attributes off any sentence written in the vocabulary; pass over unknown words.

    Adjectives belong to the noun that follows them, an object after "next to", "beside", "near",
    "by", "with" or "while" rests, and what is not said is None.
    """
    camera, words = _read_camera(_tokens(text))
    return Description(
        objects=_read_objects(words),
        motion=next((_MOTION[word] for word in words if word in _MOTION), None),
        setting=next((_SETTING[word] for word in words if word in _SETTING), None),
        camera=camera,
    )
