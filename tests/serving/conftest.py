"""One server without keys for most tests, one with keys; both make videos of a random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from .harness import Server, running

KEY, OTHER = "k" * 40, "o" * 40


@pytest.fixture(scope="session")
def server(tiny_random: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_random, tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def keyed(tiny_random: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(f"one {KEY}\ntwo {OTHER}  # the other\n")
    options = ("--api-key-file", str(folder / "keys"))
    with running(tiny_random, folder / "data", options) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
