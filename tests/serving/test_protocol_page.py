"""``docs/protocol.md`` names every message, field, code and route that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from helios.serving import Limits, protocol

from .test_border import census

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text("utf-8")
SERVING = "\n".join(p.read_text("utf-8") for p in (ROOT / "helios" / "serving").rglob("*.py"))
INWARDS, OUTWARDS = PAGE.split("## Server to client")[:2]


def row(page: str, kind: str) -> str:
    found = [line for line in page.splitlines() if line.startswith(f"| `{kind}` |")]
    assert len(found) == 1, kind
    return found[0]


@pytest.mark.parametrize("message", get_args(protocol.ClientMessage))
def test_what_a_client_may_say(message: type[protocol.SessionStop]) -> None:
    kind, *aliases = get_args(message.model_fields["type"].annotation)
    told = row(INWARDS, kind)
    for name in message.model_fields.keys() - {"type", "event_id"}:
        assert f"`{name}`" in told, (kind, name)
    for alias in aliases:
        assert f"`{alias}`" in INWARDS
    named = set(re.findall(r"`([a-z_]+)`", told.split("|")[2]))
    assert named <= message.model_fields.keys() | {"file_id", "video_id", "session_id"}


def test_what_a_server_says() -> None:
    live = (ROOT / "helios" / "serving" / "live" / "connection.py").read_text("utf-8")
    live += (ROOT / "helios" / "serving" / "live" / "sending.py").read_text("utf-8")
    said = set(re.findall(r'\.say\(\s*"([a-z.]+)"', live))
    assert len(said) >= 14
    for kind in said:
        row(OUTWARDS, kind)
    assert set(re.findall(r"^\| `([a-z.]+)` \|", OUTWARDS, re.MULTILINE)) <= said


def test_the_codes_are_real() -> None:
    paragraph = OUTWARDS.split("Codes:")[1].split("\n\n")[0]
    codes = [code for code in re.findall(r"`([a-z_]+)`", paragraph) if "." not in code]
    assert len(codes) > 15
    for code in codes:
        assert f'"{code}"' in SERVING, code


def test_the_routes_are_real() -> None:
    paths = {re.sub(r"\{[^}]*\}", "{}", path) for _, path in census()}
    paths |= {"/openapi.json", "/v1/realtime/video"}
    table = PAGE.split("## Beside it, over HTTP")[1]
    named = re.findall(r"`(?:[A-Z]+(?:`/`[A-Z]+)? )?(/(?:v1|health|metrics|openapi)[^` ]*)", table)
    assert len(named) > 12
    for path in named:
        assert re.sub(r"\{[^}]*\}", "{}", path) in paths, path


def test_the_limits_are_named_with_their_defaults() -> None:
    """``docs/studio.md`` tells operators every limit there is, and what it is without them."""
    page = (ROOT / "docs" / "studio.md").read_text("utf-8")
    table = page.split("| limits | default | of |")[1]
    units = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "days": 86_400}
    told: dict[str, float] = {}
    for names, defaults in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", table, re.MULTILINE):
        values = [re.fullmatch(r"([\d.]+) ?(\w*)", text) for text in defaults.split(", ")]
        limits = re.findall(r"`(\w+)`", names)
        for name, value in zip(limits, values, strict=True):
            assert value is not None, name
            told[name] = float(value[1]) * units[value[2]]
    assert told == vars(Limits())
