"""A running studio and a browser before it, for programs that measure and photograph."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["CHROMIUM_FLAGS", "CHROMIUM_MISSING", "chromium", "fetch", "find_chromium", "server"]

CHROMIUM_MISSING = (
    "Chromium was not found. Install it (Debian, Ubuntu: apt-get install -y chromium; or "
    "python -m playwright install chromium), or name it in HELIOS_CHROMIUM."
)
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """Path of a Chromium: the one named in ``HELIOS_CHROMIUM``, on the path, or playwright's own.

    Raises:
        FileNotFoundError: with what to install.
    """
    named = os.environ.get("HELIOS_CHROMIUM")
    found = [named] if named else [shutil.which(name) for name in _NAMES]
    from playwright.sync_api import sync_playwright

    if not any(found):
        with sync_playwright() as playwright:
            found = [playwright.chromium.executable_path]
    path = next((name for name in found if name and Path(name).is_file()), None)
    if path is None:
        raise FileNotFoundError(CHROMIUM_MISSING)
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium that talks to nobody of its own accord."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def server(data: Path, options: Sequence[str] = (), threads: int = 1) -> Iterator[str]:
    """``helios serve`` with the bundled model on a free port; its address, once it is ready."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "helios", "serve", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    log = (data / "server.log").open("wb")
    process = subprocess.Popen(
        [*command, "--data", str(data), *options],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    try:
        _wait_until_ready(address, process, data / "server.log")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def fetch(address: str) -> Any:
    """The JSON at ``address``."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/health/ready", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready: {log.read_text(errors='replace')[-2000:]}")
