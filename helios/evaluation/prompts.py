"""What is asked for: sentences of known scenes for the small model, a file of prompts for others.

The scenes' library is an endless list fixed by a seed, of attribute combinations that no training
split holds. A file has one prompt per line, or is JSON as benchmarks publish it: a list of texts, a
list of objects with a ``prompt``, or an object of either kind.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helios.data.scenes import Description, Scene, sample_scenes, write
from helios.errors import InputError

__all__ = ["BenchPrompt", "read_prompts", "scene_prompts"]

TEXT_FIELDS = ("refined_prompt", "prompt", "prompt_en", "caption", "text")
"""Names under which benchmark files keep the text, the best first."""

LONGEST = 2**22
"""Bytes of a prompt file that are read; 240 refined prompts are 200 kB."""


@dataclass(frozen=True)
class BenchPrompt:
    """One text to make videos of.

    Attributes:
        text: the prompt.
        scene: the scene behind it, if there is one: then attributes can be judged.
        stated: what the text says of that scene.
    """

    text: str
    scene: Scene | None = None
    stated: Description | None = None

    def again(self, times: int) -> BenchPrompt:
        """The same words with other places, phases and speeds of the scene; 0 is itself."""
        if self.scene is None or times == 0:
            return self
        hidden = random.Random(f"again {self.scene.seed} {times}").getrandbits(32)
        return replace(self, scene=replace(self.scene, seed=hidden))


def scene_prompts(count: int, seed: int = 20_000) -> tuple[BenchPrompt, ...]:
    """The first ``count`` of the endless list of held-out scenes that ``seed`` names."""
    scenes = sample_scenes(count, seed=seed, split="test")
    written = [
        write(scene, random.Random(f"captions {seed} {index}"))
        for index, scene in enumerate(scenes)
    ]
    return tuple(
        BenchPrompt(text, scene, said) for scene, (text, said) in zip(scenes, written, strict=True)
    )


def read_prompts(path: Path, count: int | None = None) -> tuple[BenchPrompt, ...]:
    """Prompts of a file: ``.txt`` with one per line, ``.json`` or ``.jsonl``.

    Args:
        path: the file.
        count: only the first so many.

    Raises:
        InputError: if there is none, or the file is something else.
    """
    try:
        data = path.read_bytes()[: LONGEST + 1]
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"prompts: {path} is not a file") from None
    if len(data) > LONGEST:
        raise InputError(f"prompts: {path} is longer than {LONGEST} bytes")
    try:
        texts = list(_texts(data.decode("utf-8-sig"), path.suffix.lower()))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"prompts: {path} cannot be read: {error}") from None
    except ValueError as error:
        raise InputError(f"prompts: {path}: {error}") from None
    if not texts:
        raise InputError(f"prompts: {path} holds no prompt")
    return tuple(BenchPrompt(text) for text in texts[:count])


def _texts(content: str, kind: str) -> Iterator[str]:
    if kind == ".json":
        yield from _of_json(json.loads(content))
        return
    for line in content.splitlines():
        if line.strip():
            yield _text(json.loads(line)) if kind == ".jsonl" else line.strip()


def _of_json(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and not any(name in value for name in TEXT_FIELDS):
        value = list(value.values())
    entries: Sequence[Any] = value if isinstance(value, list) else [value]
    for entry in entries:
        yield _text(entry)


def _text(entry: Any) -> str:
    if isinstance(entry, dict):
        entry = next((entry[name] for name in TEXT_FIELDS if entry.get(name)), None)
    if not isinstance(entry, str) or not entry.strip():
        raise ValueError(f"an entry without a text; one of {', '.join(TEXT_FIELDS)} is needed")
    return entry.strip()
