"""One server without keys for most tests, one with keys; both make videos of a random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from .harness import Server, running
from .studio_page import WAIT_MS, Studio, studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

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


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One place, so that a second visitor has to wait; one adapter to choose."""
    from helios.model import LoraConfig, new_adapter, save_adapter
    from helios.pipeline import load

    folder = tmp_path_factory.mktemp("studio")
    adapter = new_adapter(load("tiny").transformer, LoraConfig(rank=2))
    save_adapter(adapter, folder / "pastel.safetensors")
    options = ["--lora", f"pastel={folder / 'pastel.safetensors'}"]
    options += ["--limit", "live=1", "--test-faults"]
    with studio.server(folder, options) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        path = studio.find_chromium()
    except FileNotFoundError as missing:
        pytest.fail(str(missing))
    assert path
    with studio.chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Studio]:
    """A fresh page; afterwards: nothing on the console, no request to anybody else."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    tab = context.new_page()
    tab.set_default_timeout(WAIT_MS)
    foreign: list[str] = []

    def look(route: Route) -> None:
        url = route.request.url
        if url.startswith((address, "blob:", "data:")):
            route.continue_()
        else:
            foreign.append(url)
            route.abort()

    context.route("**/*", look)
    visited = Studio(tab, address)
    yield visited
    context.close()
    assert visited.said == []
    assert foreign == []
