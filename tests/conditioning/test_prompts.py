"""Prompt tracks: validation, which prompt holds, transitions against their formula."""

import re

import pytest

from helios.conditioning import Blend, PromptTrack, check_prompt
from helios.errors import InputError


def test_one_prompt_holds_for_ever() -> None:
    track = PromptTrack.parse("  a red ball \r\n bounces ")
    assert track.changes == ((0, "a red ball \n bounces"),)
    assert track.at(0) == track.at(10**9) == "a red ball \n bounces"
    assert track.blend(5, 3) == Blend(track.at(0), track.at(0), 1.0)


def test_the_last_prompt_holds_after_the_last_change() -> None:
    track = PromptTrack.parse([(0, "a"), (7, "b"), (14, "c"), (21, "a")])
    assert [track.at(chunk) for chunk in (0, 6, 7, 13, 14, 20, 21, 22, 500)] == list("aabbccaaa")
    assert track.prompts == ("a", "b", "c")


def test_transition_is_linear_from_the_old_to_the_new() -> None:
    track = PromptTrack.parse([(0, "a"), (7, "b"), (14, "c")])
    seen = [track.blend(chunk, 3) for chunk in range(5, 19)]
    a, b, c = (Blend(text, text, 1.0) for text in "abc")
    assert seen == [
        *(a, a),
        *(Blend("a", "b", 0.0), Blend("a", "b", 0.5), Blend("a", "b", 1.0), b, b, b, b),
        *(Blend("b", "c", 0.0), Blend("b", "c", 0.5), Blend("b", "c", 1.0), c, c),
    ]


@pytest.mark.parametrize("length", [0, 1])
def test_short_transition_is_a_cut(length: int) -> None:
    track = PromptTrack.parse([(0, "a"), (2, "b")])
    assert track.blend(1, length) == Blend("a", "a", 1.0)
    assert track.blend(2, length) == Blend("b", "b", 1.0)


def test_transition_fits_into_a_short_prompt() -> None:
    """Whatever the lengths, the mixture moves without a jump from prompt to prompt."""
    track = PromptTrack.parse([(0, "a"), (2, "b"), (4, "c"), (5, "d"), (9, "e")])
    assert [track.blend(chunk, 4).weight for chunk in (2, 3)] == [0.0, 1.0]
    assert track.blend(4, 4) == Blend("c", "c", 1.0)
    weights = [track.blend(chunk, 4).weight for chunk in (5, 6, 7, 8)]
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt is empty"),
        (" \n\t ", "prompt is empty"),
        ([], "track is empty"),
        ([(1, "a")], "must start at chunk 0, got 1"),
        ([(0, "a"), (0, "b")], "prompt 1 starts at chunk 0, not after chunk 0"),
        ([(0, "a"), (5, "b"), (3, "c")], "prompt 2 starts at chunk 3, not after chunk 5"),
        ([(0, "a"), (2, " ")], "prompt 1 is empty"),
        ([(0, "a"), (2.5, "b")], "chunk 2.5"),
        ([(False, "a")], "chunk False"),
        ([(0, 7)], "must be text, got int"),
        (["a", "b"], "list of (start_chunk, text)"),
        ([(0, "a", "b")], "list of (start_chunk, text)"),
        (7, "got int"),
        (None, "got NoneType"),
        ("a" * 4097, "4,097 characters"),
        ("a\0b", "U+0000"),
        ("a\x1b[31m", "U+001B"),
        ("a\x85b", "U+0085"),
        ("half \ud83d pair", "U+D83D"),
    ],
)
def test_bad_tracks_are_refused_in_one_line(prompt: object, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        PromptTrack.parse(prompt)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_other_text_is_welcome() -> None:
    for text in ("日本語", "👩‍🚀 rides", "naïve—“quoted” & <b>", "a\tb\nc", "x" * 4096):
        assert check_prompt(text) == text
    assert check_prompt("e\u0301") == "é"
    assert check_prompt("", name="negative_prompt", empty=True) == ""


def test_chunks_count_from_zero() -> None:
    track = PromptTrack.parse("a")
    with pytest.raises(ValueError, match="chunk"):
        track.at(-1)
    with pytest.raises(ValueError, match="transition_chunks"):
        track.blend(0, -1)
