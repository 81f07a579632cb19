"""Requirement 72: readers of what strangers send, given what nobody would send.

Each target may refuse in its own way and in no other. ``HELIOS_FUZZ=20000`` tries longer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from helios.errors import CheckpointError, InputError
from helios.media import read_image, read_video
from helios.presets import override, training_preset
from helios.serving import Limits
from helios.serving.errors import ApiError, from_validation
from helios.serving.protocol import CreateVideo, ExtendVideo, RemixVideo, client_message
from helios.serving.store import Store, is_id, new_id
from helios.serving.strict_json import parse_object
from helios.serving.web.bodies import checked, form_values
from helios.storage import open_file, open_weights, read_tensors, write_tensors

from .test_border import film, picture

TRIES = int(os.environ.get("HELIOS_FUZZ", "150"))
fuzzed = settings(
    max_examples=TRIES,
    deadline=None,
    derandomize=TRIES <= 150,
    suppress_health_check=list(HealthCheck),
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([33, 34, 24, 0, -1, 1e308])
TEXTS = st.text(max_size=40) | st.sampled_from(
    ["a red ball", "", " ", "\x00", "\ud800", "640x384", "641x384", "video_" + "0" * 32, "٣", "1e9"]
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
)
KINDS = (
    "start", "resume", "prompt", "lora", "played", "branch", "extend", "save", "stop", "ping", "x",
)  # fmt: skip


def objects(names: Iterable[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some fields that are known, some that are not, and anything in them."""
    return st.dictionaries(st.sampled_from(sorted(names)) | TEXTS, VALUES, max_size=6)


def changed(data: bytes, draw: Any) -> bytes:
    """``data`` with a few bytes other, cut, doubled or put in."""
    pieces = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(pieces) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                pieces[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                del pieces[at : at + draw(st.integers(1, 64))]
            case 2:
                pieces[at:at] = pieces[at : at + 32]
            case 3:
                pieces[at : at + 4] = draw(st.binary(min_size=4, max_size=4))
    return bytes(pieces)


def refusal(do: Callable[[], Any], *kinds: type[Exception]) -> Exception | None:
    """How ``do`` refused; any other exception goes on its way."""
    try:
        do()
    except kinds as error:
        return error
    return None


def spelled(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


@fuzzed
@given(st.binary(max_size=400) | VALUES.map(spelled))
def test_bodies_that_are_no_object_are_refused(data: bytes) -> None:
    error = refusal(lambda: parse_object(data), ApiError)
    assert not isinstance(error, ApiError) or (error.status, error.code) == (400, "invalid_json")


@pytest.mark.parametrize("kind", [CreateVideo, RemixVideo, ExtendVideo])
def test_requests(kind: type[CreateVideo] | type[RemixVideo] | type[ExtendVideo]) -> None:
    accepted = 0

    @fuzzed
    @given(objects(kind.model_fields), st.booleans())
    def play(value: dict[str, Any], form: bool) -> None:
        nonlocal accepted
        value.setdefault("prompt", "a red ball")

        def read() -> None:
            texts = {str(name): str(item) for name, item in value.items()}
            checked(form_values(texts) if form else parse_object(spelled(value)), kind)

        error = refusal(read, ApiError)
        accepted += error is None
        assert not isinstance(error, ApiError) or (error.status == 400 and error.code in REFUSALS)

    play()
    assert accepted or kind is ExtendVideo  # that one needs an identifier


REFUSALS = {
    "invalid_value", "invalid_prompt", "prompt_too_long", "unknown_parameter", "url_not_allowed",
    "missing_required_parameter", "invalid_json", "invalid_media",
}  # fmt: skip


@fuzzed
@given(
    st.sampled_from([f"session.{kind}" for kind in KINDS]) | TEXTS,
    objects({"prompt", "chunk", "transition_chunks", "loras", "session", "seed", "ahead", "have"}),
)
def test_live_messages(kind: str, value: dict[str, Any]) -> None:
    text = spelled(value | {"type": kind})
    error = refusal(lambda: client_message(parse_object(text)), ApiError, ValidationError)
    if isinstance(error, ValidationError):
        assert from_validation(error, skip=1).status == 400
    elif isinstance(error, ApiError):
        assert error.code == "invalid_json"


@fuzzed
@given(
    st.text(max_size=80)
    | st.tuples(
        st.sampled_from(["video_", "session_", "file_", "../", "video_../", "VIDEO_"]),
        st.text("0123456789abcdef./\\%\n\0٣", min_size=28, max_size=36),
    ).map("".join)
)
def test_identifiers_lead_nowhere_else(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "data", Limits(free=0))
        known = any(is_id(text, kind) for kind in ("video", "session", "file"))
        try:
            path = store.folder(text)
        except ValueError:
            assert not known
            return
        assert known
        assert path.name == text
        assert path.parent.parent == store.root
    assert is_id(new_id("video"), "video")


@fuzzed
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["steps", "seed", "optimizer.lr", "stage.x", "optimizer", "", "a.b.c"])
            | st.text(max_size=20),
            st.sampled_from(["1", "nan", "none", "true", "1e999", "-1", "[", "{}", ",", "1,2"])
            | st.text(max_size=20),
        ).map("=".join)
        | st.text(max_size=20),
        max_size=4,
    )
)
def test_settings_of_a_configuration(given_settings: list[str]) -> None:
    with suppress(ValueError):
        override(CONFIG, given_settings)


CONFIG = training_preset("tiny-stage1")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tensors = {f"layer.{n}": torch.arange(24, dtype=torch.float32).reshape(4, 6) for n in range(4)}
    write_tensors(folder, tensors, shard_bytes=100)
    assert len(list(folder.iterdir())) == 5
    return folder


def test_indexes_of_checkpoints(sharded: Path) -> None:
    index = next(sharded.glob("*.index.json"))
    good = index.read_bytes()
    names = sorted(path.name for path in sharded.glob("*.safetensors"))
    files = st.sampled_from([*names, "../x", "/etc/passwd", "", ".", "a/b"]) | VALUES
    maps = st.dictionaries(st.sampled_from([f"layer.{n}" for n in range(5)]) | TEXTS, files)

    @fuzzed
    @given(st.data())
    def play(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            index.write_bytes(changed(good, data.draw))
        else:
            index.write_bytes(spelled({"weight_map": data.draw(maps | VALUES)}))
        with suppress(CheckpointError):
            # Less than the module needs is found when it is filled.
            assert set(open_weights(sharded).entries) <= {f"layer.{n}" for n in range(4)}

    play()
    index.write_bytes(good)
    assert len(open_weights(sharded).entries) == 4


def test_headers_of_weights(sharded: Path, tmp_path: Path) -> None:
    good = next(sharded.glob("*.safetensors")).read_bytes()
    (tmp_path / "c").mkdir()
    file = tmp_path / "c" / "x.safetensors"

    @fuzzed
    @given(st.data())
    def play(data: st.DataObject) -> None:
        head = 8 + int.from_bytes(good[:8], "little")
        file.write_bytes(changed(good[:head], data.draw) + good[head:])
        with suppress(CheckpointError):
            promised = open_file(file)
            held = read_tensors(file.parent, file.name)
            assert {name: tuple(t.shape) for name, t in held.items()} == {
                name: entry.shape for name, entry in promised.items()
            }

    play()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "film"])
def test_the_media_gate(kind: str, tmp_path: Path) -> None:
    """In this process, so that what a child would hide by dying is seen."""
    good = film(5) if kind == "film" else picture(kind)
    file = tmp_path / "x"

    @settings(fuzzed, max_examples=max(40, TRIES // 3))
    @given(st.data())
    def play(data: st.DataObject) -> None:
        file.write_bytes(changed(good, data.draw))
        with suppress(InputError, MemoryError):
            pixels = read_video(file, 40)[0] if kind == "film" else read_image(file)
            assert pixels.shape[-1] == 3

    play()
