"""The studio's page in a real browser, and what a person does with it."""

from __future__ import annotations

import base64
import importlib
import io
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
studio = importlib.import_module("studio_browser")

RED = "a large red ball bounces on green grass"
BLUE = "a blue cube spins on snow"
# The fewest steps at which the scene is what the words say; guidance takes a change at once.
CHEAP = {"steps": "2", "guidance": "3", "transition": "0", "seed": "7"}
OWN = frozenset({"steps", "guidance"})
"""What a distilled model does its own way: few steps as it is, and no guidance."""
WAIT_MS = 80_000
"""How long to wait for the next sign of life."""
PAUSE = 0.4
"""Seconds before each of the three steps of a chunk: longer together than the chunk plays."""


def fault(address: str, kind: str, seconds: float = 0) -> None:
    """Something happens to the worker at its next step."""
    request = urllib.request.Request(
        f"{address}/test/faults",
        data=json.dumps({"kind": kind, "seconds": seconds}).encode(),
        headers={"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def slowed(address: str, pause: float = PAUSE) -> Iterator[None]:
    """For the time of the block the model is slower than real time, on any machine."""
    fault(address, "slow", pause)
    try:
        yield
    finally:
        fault(address, "slow", 0)


def _distilled(address: str) -> bool:
    return bool(studio.fetch(f"{address}/v1/models")["data"][0]["defaults"]["distilled"])


def quick(address: str) -> dict[str, Any]:
    """What to ask the API for so that the server's model takes few steps."""
    return {} if _distilled(address) else {"steps": 4, "guidance_scale": 1}


class Studio:
    """A page, and what a person does with it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"uncaught: {error}"))

    def open(self, **settings: Any) -> Studio:
        cheap = {k: v for k, v in CHEAP.items() if not (k in OWN and _distilled(self.address))}
        chosen = json.dumps(cheap | {"length": "", **settings})
        self.page.add_init_script(
            f"if (!localStorage['helios.settings']) localStorage['helios.settings'] = {chosen!r}"
        )
        # Every sentence that is shown at the top, however short a time.
        self.page.add_init_script(
            """window.told = [];
            addEventListener("DOMContentLoaded", () => {
              const line = document.querySelector("#banner span");
              if (!line) return;  // another page than ours
              new MutationObserver(() => window.told.push(line.textContent))
                .observe(line, { childList: true, characterData: true, subtree: true });
            });"""
        )
        self.page.goto(self.address)
        self.page.wait_for_selector(".example, #hints .chip", state="attached")
        return self

    def write(self, prompt: str) -> None:
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Enter")

    @property
    def chunks(self) -> int:
        return self.page.locator(".lane[data-current=true] .tile").count()

    @property
    def time(self) -> float:
        return float(self.page.evaluate("document.getElementById('video').currentTime"))

    @property
    def phase(self) -> str:
        return str(self.page.evaluate("document.body.dataset.phase"))

    @property
    def state(self) -> str:
        """What the page says of itself, for a test that fails."""
        parts = ("phase", "banner", "curtain-text", "health")
        shown = [self.phase, *(self.page.text_content(f"#{part}") for part in parts[1:])]
        return str(dict(zip(parts, shown, strict=True)))

    def until(self, expression: str, seconds: float = WAIT_MS / 1000) -> None:
        """Wait for an expression; playwright's own way needs eval, which the page forbids.

        ``seconds`` count from the last sign of life: a busy machine is no defect of the page.
        """
        alive, deadline = None, 0.0
        signs = """[document.body.dataset.phase, document.querySelectorAll('.tile').length,
          document.getElementById('banner').textContent].join()"""
        while True:
            done, now = self.page.evaluate(f"[Boolean({expression}), {signs}]")
            if done:
                return
            if now != alive:
                alive, deadline = now, time.monotonic() + seconds
            assert time.monotonic() < deadline, f"{expression}: {self.state}"
            self.page.wait_for_timeout(40)

    def was_told(self, words: str) -> None:
        """Wait until a banner has said ``words``, whether it still does or not; once each time."""
        self.until(f"window.told.some((text) => text.includes({words!r}))")
        self.page.evaluate("window.told.length = 0")

    def complaint(self) -> str:
        """What the browser itself noted last, which comes when it comes; taken off the list."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while not self.said:
            assert time.monotonic() < deadline, self.state
            self.page.wait_for_timeout(40)
        return self.said.pop()

    def wait_chunks(self, count: int) -> None:
        tiles = "document.querySelectorAll('.lane[data-current=true] .tile').length"
        self.until(f"{tiles} >= {count}")

    def wait_phase(self, name: str) -> None:
        self.until(f"document.body.dataset.phase === '{name}'")

    def frame(self, seconds: float) -> np.ndarray:
        """Pixels ``[H, W, 3]`` of what the player shows at ``seconds``."""
        # A player that has come to its end goes on when there is more: seek, then stop it.
        url = self.page.evaluate(
            """async (at) => {
              const [video, play] = ["video", "play"].map((id) => document.getElementById(id));
              const seek = () => new Promise((done) => {
                video.addEventListener("seeked", done, { once: true });
                video.currentTime = at;
              });
              // Before the header is read a position is only noted, and no seek ends.
              while (!video.readyState) await new Promise((done) => setTimeout(done, 40));
              await seek();
              if (play.getAttribute("aria-label") === "Pause") play.click();
              await seek();
              await new Promise((done) => setTimeout(done, 120));
              const canvas = document.createElement("canvas");
              canvas.width = video.videoWidth; canvas.height = video.videoHeight;
              canvas.getContext("2d").drawImage(video, 0, 0);
              return canvas.toDataURL("image/png");
            }""",
            seconds,
        )
        from PIL import Image

        data = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)


def blueness(pixels: np.ndarray) -> float:
    """Share of strongly blue minus share of strongly red pixels in the middle of the frame."""
    height, width, _ = pixels.shape
    middle = pixels[height // 5 :, width // 5 : -width // 5]
    red, blue = middle[..., 0], middle[..., 2]
    return float(np.mean(blue - red > 40) - np.mean(red - blue > 40))
