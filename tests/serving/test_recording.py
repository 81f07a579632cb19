"""Recordings: what is said of a chunk is on disk, whatever cut the recording off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helios.serving.live.recording import INDEX, MEDIA, Recording, note_of

HEADER = b"header"


def note(chunk: int, frames: int = 33) -> dict[str, Any]:
    return {
        "chunk": chunk, "start_frame": 33 * chunk, "frames": frames, "prompt": f"p{chunk}",
        "timings": {"made": 0.1}, "thumbnail": "data:image/jpeg;base64,AAAA",
    }  # fmt: skip


def fragment(chunk: int) -> bytes:
    return bytes([chunk]) * (10 + chunk)


def recorded(folder: Path, chunks: int) -> Recording:
    own = Recording.begin(folder, HEADER)
    for chunk in range(chunks):
        own.append(note(chunk), fragment(chunk))
    return own


def same(one: Recording, other: Recording) -> None:
    assert (len(one), one.size, one.frames) == (len(other), other.size, other.frames)
    assert list(one.notes()) == list(other.notes())
    for chunk in range(len(one)):
        assert one.read(chunk) == other.read(chunk)
    assert one.header() == other.header()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    own = recorded(tmp_path, 5)
    assert (len(own), own.frames) == (5, 5 * 33)
    assert own.path.read_bytes() == HEADER + b"".join(map(fragment, range(5)))
    assert own.header() == HEADER
    assert [noted["prompt"] for noted in own.notes(3)] == ["p3", "p4"]
    assert own.noted(2) == note(2) | {"offset": len(HEADER) + 10 + 11, "bytes": 12}
    assert note_of(tmp_path, 0) == own.noted(0)
    assert note_of(tmp_path, 1) == own.noted(1)
    assert note_of(tmp_path, 99) == own.noted(len(own) - 1)
    same(Recording.open(tmp_path), own)


def test_cut_and_continued_is_as_if_it_had_never_been_longer(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    own = recorded(tmp_path / "a", 5)
    own.cut(2)
    assert (len(own), own.frames) == (2, 66)
    own.append(note(2), fragment(2))
    other = recorded(tmp_path / "b", 3)
    same(own, other)
    for name in (MEDIA, INDEX):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    own.cut(0)
    assert (len(own), own.frames, own.path.read_bytes()) == (0, 0, HEADER)


@pytest.mark.parametrize("lost", [1, 12, 30])
def test_a_recording_cut_off_anywhere_ends_with_a_whole_chunk(tmp_path: Path, lost: int) -> None:
    own = recorded(tmp_path, 4)
    whole = own.path.read_bytes()
    own.path.write_bytes(whole[:-lost])
    left = Recording.open(tmp_path)
    assert left.size <= len(whole) - lost
    assert [left.read(chunk) for chunk in range(len(left))] == [*map(fragment, range(len(left)))]
    left.cut(len(left))
    left.append(note(len(left)), b"again")
    same(Recording.open(tmp_path), left)
    assert left.path.stat().st_size == left.size


def test_a_torn_line_is_no_chunk(tmp_path: Path) -> None:
    own = recorded(tmp_path, 3)
    own.index.write_bytes(own.index.read_bytes()[:-1])
    assert len(Recording.open(tmp_path)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": -1}, {"offset": 3}, {"bytes": 1 << 70}, {"frames": "33"}, {"frames": True},
        {"prompt": None}, {"timings": []}, {"timings": {"made": "x"}}, {"timings": {"made": -1}},
        {"thumbnail": "javascript:alert(1)"}, {"thumbnail": "data:image/svg+xml;base64,AAAA"},
        {"thumbnail": None},
    ],
)  # fmt: skip
def test_an_index_of_a_stranger_is_believed_as_far_as_it_is_one(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    own = recorded(tmp_path, 3)
    lines = own.index.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | wrong)
    own.index.write_text("\n".join(lines) + "\n")
    assert len(Recording.open(tmp_path)) == 1


def test_a_refused_write_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = recorded(tmp_path, 2)
    before = [(tmp_path / name).read_bytes() for name in (MEDIA, INDEX)]
    opened = Path.open

    def refusing(path: Path, *arguments: Any) -> Any:
        if path.name == INDEX:
            raise OSError(28, "full")
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(OSError, match="full"):
        own.append(note(2), fragment(2))
    monkeypatch.undo()
    assert [(tmp_path / name).read_bytes() for name in (MEDIA, INDEX)] == before
    assert len(own) == 2


def test_a_chunk_takes_a_few_bytes_of_memory(tmp_path: Path) -> None:
    """A day of video is 60,000 chunks: what is kept of each must not be what is said of it."""
    own = recorded(tmp_path, 1)
    for number in range(1000):
        own._add(note(number) | {"offset": 6, "bytes": 10}, 300)
    assert own._offsets.itemsize * len(own._offsets) + own._lines.itemsize * len(own._lines) < 20e3
    assert not any(isinstance(value, list | dict) for value in vars(own).values())
