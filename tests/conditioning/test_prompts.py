"""Prompt tracks: validation, which prompt holds, transitions against their formula."""

import re

import pytest

from helios.conditioning import Blend, PromptTrack, check_prompt
from helios.errors import InputError


def only(text: str) -> Blend:
    return Blend(((text, 1.0),))


def between(old: str, new: str, weight: float) -> Blend:
    return Blend(((old, 1.0), (new, weight)))


def shares(blend: Blend) -> dict[str, float]:
    """How much of each prompt the mixture holds, by its definition."""
    result: dict[str, float] = {}
    for text, weight in blend.parts:
        result = {old: (1 - weight) * share for old, share in result.items()}
        result[text] = result.get(text, 0.0) + weight
    return result


def test_one_prompt_holds_for_ever() -> None:
    track = PromptTrack.parse("  a red ball \r\n bounces ")
    assert track.changes == ((0, "a red ball \n bounces"),)
    assert track.at(0) == track.at(10**9) == "a red ball \n bounces"
    assert track.blend(5) == only(track.at(0))
    assert PromptTrack.parse("a", 3) == PromptTrack.parse([(0, "a")], 3) == PromptTrack.parse("a")


def test_the_last_prompt_holds_after_the_last_change() -> None:
    track = PromptTrack.parse([(0, "a"), (7, "b"), (14, "c"), (21, "a")])
    assert [track.at(chunk) for chunk in (0, 6, 7, 13, 14, 20, 21, 22, 500)] == list("aabbccaaa")
    assert track.prompts == ("a", "b", "c")


def test_transition_is_linear_from_the_old_to_the_new() -> None:
    track = PromptTrack.parse([(0, "a"), (7, "b"), (14, "c")], 3)
    seen = [track.blend(chunk) for chunk in range(5, 19)]
    assert seen == [
        *(only("a"), only("a")),
        *(only("a"), between("a", "b", 0.5), *[only("b")] * 5),
        *(only("b"), between("b", "c", 0.5), *[only("c")] * 3),
    ]
    assert track.blend(10**6) == only("c")


@pytest.mark.parametrize("length", [0, 1])
def test_short_transition_is_a_cut(length: int) -> None:
    track = PromptTrack.parse([(0, "a"), (2, "b")], length)
    assert track.blend(1) == only("a")
    assert track.blend(2) == only("b")


def test_transition_fits_into_a_short_prompt() -> None:
    """Whatever the lengths, the mixture moves without a jump from prompt to prompt."""
    track = PromptTrack.parse([(0, "a"), (2, "b"), (4, "c"), (5, "d"), (9, "e")], 4)
    assert [track.blend(chunk) for chunk in (2, 3)] == [only("a"), only("b")]
    assert track.blend(4) == only("c")
    weights = [shares(track.blend(chunk)).get("d", 0.0) for chunk in (5, 6, 7, 8)]
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_live_change_replaces_what_was_to_come() -> None:
    track = PromptTrack.parse([(0, "a"), (4, "b"), (9, "c")], 3)
    live = track.changed(6, " d ", 2)
    assert live.changes == ((0, "a"), (4, "b"), (6, "d"))
    assert live.transitions == (0, 3, 2)
    assert [live.blend(chunk) for chunk in range(6)] == [track.blend(chunk) for chunk in range(6)]
    assert live.changed(6, "e").changes == ((0, "a"), (4, "b"), (6, "e"))
    assert track.changed(0, "z", 5) == PromptTrack.parse("z")


def test_what_was_to_come_can_be_taken_back() -> None:
    track = PromptTrack.parse([(0, "a"), (4, "b"), (9, "c")], 3)
    assert track.until(9) == PromptTrack(((0, "a"), (4, "b")), (0, 3))
    assert track.until(4) == track.until(0) == PromptTrack.parse("a")
    assert track.until(10) == track


def test_a_change_during_a_transition_starts_from_what_is_shown() -> None:
    track = PromptTrack.parse("a").changed(1, "b", 5).changed(3, "c", 3)
    seen = [shares(track.blend(chunk)) for chunk in range(6)]
    assert seen[2] == seen[3] == {"a": 0.75, "b": 0.25}
    assert seen[4] == {"a": 0.375, "b": 0.125, "c": 0.5}
    assert seen[5] == {"c": 1.0}


def test_a_mixture_stays_short_however_often_it_is_interrupted() -> None:
    track = PromptTrack.parse("0")
    for chunk in range(1, 200, 2):
        track = track.changed(chunk, str(chunk), 3)
    blend = track.blend(200)
    assert len(blend.parts) <= 14
    assert shares(blend)["199"] == 0.5
    assert sum(shares(blend).values()) == pytest.approx(1.0)


def test_forgetting_the_past_changes_nothing_from_there_on() -> None:
    track = PromptTrack.parse("a")
    for start, text, length in ((2, "b", 3), (3, "c", 0), (6, "d", 4), (8, "e", 3), (9, "f", 5)):
        track = track.changed(start, text, length)
    for chunk in range(16):
        short = track.since(chunk)
        for later in range(chunk, 18):
            assert short.blend(later) == track.blend(later)
            assert short.at(later) == track.at(later)
    assert track.since(0) is track.since(2) is track
    assert track.since(5).changes == ((0, "c"), (6, "d"), (8, "e"), (9, "f"))
    assert track.since(8).changes == track.since(12).changes == track.since(5).changes
    assert track.since(13) == PromptTrack.parse("f")


@pytest.mark.parametrize("length", [-1, 1.5, True, 1001])
def test_unusable_transitions_are_refused(length: object) -> None:
    for call in (PromptTrack.parse("a").changed, lambda chunk, *args: PromptTrack.parse(*args)):
        with pytest.raises(ValueError, match="transition_chunks"):
            call(1, "b", length)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transitions must be 1 numbers"):
        PromptTrack(((0, "a"),), (0, 3))


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
