"""Captions say what the scene is, a program reads it back, and every word has one meaning."""

import random
from collections import Counter
from pathlib import Path

import pytest

from helios.data.scenes import (
    VOCABULARY,
    Description,
    ObjectDescription,
    caption,
    parse_caption,
    sample_scenes,
    vocabulary_document,
    write,
)
from helios.data.scenes import vocabulary as words
from helios.data.scenes.captions import _tokens

PAGE = Path(__file__).parents[2] / "docs" / "vocabulary.md"


def test_every_caption_reads_back_as_exactly_what_it_states():
    rng = random.Random(1)
    used: set[str] = set()
    for scene in sample_scenes(4000, seed=3, split="all"):
        text, stated = write(scene, rng)
        assert parse_caption(text) == stated, text
        assert parse_caption(text.upper()) == stated
        tokens = _tokens(text)
        assert len(tokens) <= 60
        used.update(tokens)
        for item, said in zip(scene.objects, stated.objects, strict=True):
            assert (said.colour, said.shape) == (item.colour, item.shape)
            assert said.size in (None, item.size)
            assert said.material in (None, item.material)
        assert (stated.motion, stated.setting) == (scene.motion, scene.setting)
        assert stated.camera in (None, scene.camera)
    assert used == set(VOCABULARY)


def test_captions_vary_and_leave_things_out():
    scene = sample_scenes(1, seed=2)[0]
    rng = random.Random(5)
    drawn = [write(scene, rng) for _ in range(200)]
    assert len({text for text, _ in drawn}) > 180
    sizes = Counter(stated.objects[0].size is None for _, stated in drawn)
    assert min(sizes.values()) > 30
    assert caption(scene, random.Random(9)) == caption(scene, random.Random(9))


def test_a_word_means_one_thing():
    meanings: Counter[str] = Counter()
    tables = (words.COLOUR_WORDS, words.SHAPE_WORDS, words.SIZE_WORDS, words.MATERIAL_WORDS)
    for table in tables:
        meanings.update(word for group in table.values() for word in group)
    for verbs in words.MOTION_VERBS.values():
        for verb in verbs:
            meanings.update(_tokens(verb.finite))
            meanings.update(set(_tokens(verb.participle)) - {"and"})
    del meanings["and"]
    assert max(meanings.values()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a red ball bounces on green grass",
            Description(
                objects=(ObjectDescription(colour="red", shape="sphere"),),
                motion="bounces",
                setting="grass",
            ),
        ),
        (
            "At dusk, beside a tiny blue box, the big polished donut floats while the camera pans!",
            Description(
                objects=(
                    ObjectDescription(shape="torus", size="large", material="shiny"),
                    ObjectDescription(colour="blue", shape="cube", size="small"),
                ),
                motion="drifts",
                setting="sunset",
                camera="pan",
            ),
        ),
        (
            "a green star spins in white snow, the camera orbits",
            Description(
                objects=(ObjectDescription(colour="green", shape="star"),),
                motion="spins",
                setting="snow",
                camera="orbit",
            ),
        ),
        ("quarterly report", Description()),
        ("", Description()),
    ],
)
def test_free_sentences_are_understood(text, expected):
    assert parse_caption(text) == expected


def test_the_page_for_users_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == vocabulary_document()
