"""``helios serve`` and ``helios studio``: what is refused before a model is loaded, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helios.cli.main import run

SHORT, LONG = "short-and-secret", "l" * 40


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations that would have been served."""
    configs: list[Any] = []
    monkeypatch.setattr("helios.serving.serve", lambda config, **_: configs.append(config))
    monkeypatch.delenv("HELIOS_API_KEYS", raising=False)
    return configs


def refusal(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    return run(list(words)), capfd.readouterr().err.splitlines()[-1]


def test_keys_come_from_a_file_or_the_environment_and_short_ones_are_named(
    served: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"one {SHORT}\ntwo {LONG}\n")
    data = ["--data", str(tmp_path / "d")]
    assert run(["serve", "--api-key-file", str(file), *data]) == 0
    said = capfd.readouterr().err
    assert "warning: key one has 16 characters; use 32 random ones" in said
    assert "two" not in said
    assert SHORT not in said
    monkeypatch.setenv("HELIOS_API_KEYS", f"three {LONG}")
    assert run(["serve", "--host", "0.0.0.0", *data]) == 0
    assert [config.keys for config in served] == [{"one": SHORT, "two": LONG}, {"three": LONG}]
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize("text", ["one two three", "", "one key\none other"])
def test_a_key_file_that_is_none_is_refused_without_a_word_of_it(
    served: list[Any], text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    code, line = refusal(capfd, "serve", "--api-key-file", str(file))
    assert code == 2
    assert "key file" in line
    assert not any(word in line for word in ("other", "three"))
    code, line = refusal(capfd, "serve", "--api-key-file", str(tmp_path / "none"))
    assert (code, "cannot be read" in line) == (3, True)
    assert served == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--limit", "lifetim=3"], 2, "lifetime"),
        (["--limit", "queue=many"], 2, "queue must be a number"),
        (["--limit", "ttl=0"], 2, "ttl"),
        (["--lora", "pastel"], 2, "NAME=FILE"),
        (["--lora", "pastel=nowhere.safetensors"], 3, "does not exist"),
        (["--workers", "0"], 2, "workers"),
        (["--port", "70000"], 2, "port"),
        (["--host", "192.0.2.7"], 2, "--api-key-file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    served: list[Any], words: list[str], code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    got, line = refusal(capfd, "serve", *words)
    assert (got, says in line) == (code, True), line
    assert served == []


def test_the_studio_stays_here_and_has_no_lifetime(served: list[Any], tmp_path: Path) -> None:
    assert run(["studio", "--no-browser", "--data", str(tmp_path)]) == 0
    (config,) = served
    assert config.loopback
    assert config.limits.lifetime == 0
    assert config.keys == {}


def test_libraries_with_known_holes_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Requirement 71."""
    monkeypatch.setattr("helios.serving.server.version", lambda name: "0.0.30")
    code, line = refusal(capfd, "serve", "--data", str(tmp_path / "d"))
    assert code == 2
    assert "pip install 'starlette>=0.49.1'" in line
    assert not (tmp_path / "d").exists()
