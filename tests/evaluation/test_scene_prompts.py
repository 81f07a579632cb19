import json
from pathlib import Path

import pytest

from helios.data.scenes import held_out, parse_caption
from helios.errors import InputError
from helios.evaluation.prompts import BenchPrompt, read_prompts, scene_prompts


def test_the_library_is_fixed_and_held_out() -> None:
    prompts = scene_prompts(20)
    assert prompts == scene_prompts(30)[:20]
    assert prompts != scene_prompts(20, seed=1)
    for prompt in prompts:
        assert prompt.scene is not None
        main = prompt.scene.main
        assert held_out(main.colour, main.shape, prompt.scene.motion, prompt.scene.setting)
        assert parse_caption(prompt.text).objects[0].colour == main.colour


def test_again_keeps_the_words_and_changes_the_places() -> None:
    prompt = scene_prompts(1)[0]
    other = prompt.again(1)
    assert prompt.again(0) is prompt
    assert other.text == prompt.text
    assert other.scene is not None
    assert prompt.scene is not None
    assert other.scene.seed != prompt.scene.seed
    assert other.scene.objects == prompt.scene.objects
    assert prompt.again(1) == other
    assert BenchPrompt("anything").again(3) == BenchPrompt("anything")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\n\n  a dog \n"),
        ("p.json", json.dumps(["a cat", "a dog"])),
        ("p.json", json.dumps([{"id": 1, "prompt": "a cat"}, {"id": 2, "prompt": "a dog"}])),
        ("p.json", json.dumps({"1": {"prompt": "a cat"}, "2": {"prompt": "a dog"}})),
        ("p.json", json.dumps([{"prompt": "x", "refined_prompt": t} for t in ("a cat", "a dog")])),
        ("p.jsonl", '{"prompt": "a cat"}\n"a dog"\n'),
    ],
)
def test_files_of_many_kinds(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert [prompt.text for prompt in read_prompts(path)] == ["a cat", "a dog"]
    assert [prompt.text for prompt in read_prompts(path, 1)] == ["a cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.json", "[", "cannot be read"),
        ("p.json", '[{"id": 1}]', "without a text"),
        ("p.jsonl", '{"prompt": 3}', "without a text"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "bytes.txt")
