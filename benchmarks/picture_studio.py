"""Photograph the studio in its main states, for the documentation.

    python benchmarks/picture_studio.py [--out docs/studio] [--detail full] [--scenes NAME,…]

Starts a server with the bundled model, drives a headless Chromium as a person would, and writes one
small WebP for each state: empty, playing, a change announced, a timeline with a branch (in the
dark theme), the library and the phone.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import studio_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
RED = "a large red ball bounces on green grass"
BLUE = "a blue cube spins on snow"
NIGHT = "a yellow star bounces at night"
MOST_BYTES = 38_000


class Photographer:
    """A browser, a server's address, and where pictures go."""

    def __init__(self, browser: Browser, address: str, options: argparse.Namespace) -> None:
        self.browser = browser
        self.address = address
        self.out: Path = options.out
        self.settings = {"detail": options.detail, "transition": "0", "seed": "7"}

    def visit(self, size: dict[str, int]) -> Page:
        context = self.browser.new_context(
            viewport=size,  # type: ignore[arg-type]
            color_scheme="light",
            has_touch=size is PHONE,
        )
        page = context.new_page()
        page.set_default_timeout(180_000)
        settings = json.dumps(self.settings | {"length": ""})
        page.add_init_script(f"localStorage['helios.settings'] ??= {settings!r}")
        page.goto(self.address)
        page.wait_for_selector(".example")
        return page

    def take(self, page: Page, name: str) -> None:
        """Write ``name.webp``, as sharp as fits into its share."""
        from PIL import Image

        page.wait_for_timeout(350)
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        self.out.mkdir(parents=True, exist_ok=True)
        for quality in (86, 80, 74, 68, 60, 50):
            image.save(self.out / f"{name}.webp", quality=quality, method=6)
            if (self.out / f"{name}.webp").stat().st_size <= MOST_BYTES:
                break
        print(f"{name}: {(self.out / f'{name}.webp').stat().st_size} bytes", flush=True)


def until(page: Page, expression: str, seconds: float = 240) -> None:
    """Poll; playwright's own waiting needs eval, which the page forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > deadline:
            raise TimeoutError(expression)
        page.wait_for_timeout(50)


def chunks(page: Page, count: int) -> None:
    tiles = "document.querySelectorAll('.lane[data-current=true] .tile').length"
    until(page, f"{tiles} >= {count}")


def write(page: Page, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def empty(camera: Photographer) -> None:
    page = camera.visit(WIDE)
    camera.take(page, "empty")
    page.context.close()


def story(camera: Photographer) -> None:
    """One video from the first chunk to a branch, in the light theme."""
    page = camera.visit(WIDE)
    write(page, RED)
    chunks(page, 3)
    camera.take(page, "playing")
    write(page, BLUE)
    page.wait_for_selector("#notes .note:has-text('Lands in')")
    camera.take(page, "change")
    chunks(page, 6)
    page.click("#stop")
    until(page, "document.body.dataset.phase === 'done'")
    page.locator(".tile").nth(2).click()
    page.click("#acts button:has-text('Branch')")
    write(page, NIGHT)
    until(page, "document.querySelectorAll('.lane').length === 2")
    chunks(page, 3)
    page.locator(".lane").nth(1).locator(".tile").nth(1).click()
    page.emulate_media(color_scheme="dark")
    camera.take(page, "branch-dark")
    page.click("#stop")
    until(page, "document.body.dataset.phase === 'done'")
    page.context.close()


def phone(camera: Photographer) -> None:
    page = camera.visit(PHONE)
    write(page, "a pink ball floats on water beside a white cone")
    chunks(page, 3)
    write(page, "an orange star spins on sand")
    page.wait_for_selector("#notes .note:has-text('Lands in')")
    camera.take(page, "phone")
    page.click("#stop")
    until(page, "document.body.dataset.phase === 'done'")
    page.context.close()


def library(camera: Photographer) -> None:
    page = camera.visit(WIDE)
    for prompt in ("an orange star drifts at sunset", "a purple pyramid swings at night"):
        write(page, prompt)
        chunks(page, 2)
        page.click("#stop")
        until(page, "document.body.dataset.phase === 'done'")
        page.keyboard.press("Escape")
        page.keyboard.press("n")
    page.click("#go-library")
    until(page, "document.querySelectorAll('.card-picture img').length >= 4")
    camera.take(page, "library")
    page.context.close()


SCENES: dict[str, Callable[[Photographer], Any]] = {
    scene.__name__: scene for scene in (empty, story, phone, library)
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/studio"))
    parser.add_argument("--detail", default="full", choices=("quick", "fine", "full"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scenes", default=",".join(SCENES), help="separated by commas")
    return parser.parse_args()


def main() -> int:
    options = parse()
    with (
        tempfile.TemporaryDirectory() as data,
        studio_browser.server(Path(data), threads=options.threads) as address,
        studio_browser.chromium() as browser,
    ):
        camera = Photographer(browser, address, options)
        for name in options.scenes.split(","):
            SCENES[name](camera)
    total = sum(path.stat().st_size for path in options.out.glob("*.webp"))
    print(f"{total} bytes in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
