"""The container and compose files against what they stand for: no image is built here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from helios.cli.main import run

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text("utf-8")


def compose() -> dict[str, Any]:
    text = (ROOT / "docker" / "compose.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def lines(word: str) -> list[str]:
    """What stands behind an instruction, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{word}\s+(.*)$", joined, re.MULTILINE)


def listed(word: str) -> list[str]:
    """The last list of an instruction."""
    found: list[str] = json.loads(lines(word)[-1])
    return found


def test_what_is_written_is_a_volume_of_the_user() -> None:
    """All else is read-only, and an empty volume takes its owner from the image."""
    volumes = set(lines("VOLUME")[0].split())
    made = next(line for line in lines("RUN") if "useradd" in line)
    owned = set(re.search(r"chown helios (.*)$", made)[1].split())  # type: ignore[index]
    assert volumes == owned
    assert set(re.search(r"mkdir (.*?) &&", made)[1].split()) == owned  # type: ignore[index]
    caches = re.findall(r"[A-Z_]+=(/\S+)", lines("ENV")[0])
    assert len(caches) >= 4
    for path in [*caches, listed("ENTRYPOINT")[listed("ENTRYPOINT").index("--data") + 1]]:
        assert any(path == folder or path.startswith(f"{folder}/") for folder in volumes), path
    document = compose()
    for service in document["services"].values():
        assert service["read_only"]
        mounted = dict(volume.split(":") for volume in service["volumes"])
        assert set(mounted.values()) == volumes
        assert set(mounted) <= set(document["volumes"])


def test_what_is_copied_and_installed_is_there() -> None:
    for line in lines("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [service["build"].get("args", {}) for service in compose()["services"].values()]
    names = [name for args in extras for name in args.get("EXTRAS", "serve").split(",")]
    assert set(names) <= set(project["optional-dependencies"])
    assert {name for args in extras for name in args} <= {
        line.split("=")[0] for line in lines("ARG")
    }


def test_the_commands_are_options_of_serve(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capfd.readouterr().out))
    program, command, *options = listed("ENTRYPOINT")
    assert (program, command) == ("helios", "serve")
    asked = [options, listed("CMD"), *(s["command"] for s in compose()["services"].values())]
    for words in asked:
        assert {word for word in words if word.startswith("--")} <= known
    secret = compose()["services"]["cpu"]["secrets"][0]
    assert f"/run/secrets/{secret}" in options


def test_a_stop_leaves_time_to_drain() -> None:
    from helios.serving import Limits

    for service in compose()["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) > Limits().grace + 4
    assert lines("STOPSIGNAL") == ["SIGTERM"]
