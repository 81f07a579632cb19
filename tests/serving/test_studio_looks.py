"""The studio's looks and sizes, themes and keys, and its files alone."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from .studio_page import RED, Studio, studio

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = pytest.mark.timeout(900)
STATIC = Path(__file__).parents[2] / "helios" / "serving" / "static"


def test_phone_and_themes(page: Studio) -> None:
    tab = page.page
    tab.set_viewport_size({"width": 360, "height": 740})
    page.open()
    tab.wait_for_selector(".example")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    box = tab.locator("#send").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 740
    tab.click("#setup-open")
    page.until("!document.getElementById('setup').inert")
    assert tab.evaluate("document.activeElement.id") == "setup-close"
    # The keyboard stays in what covers the page, and comes back from it.
    for _ in range(25):
        tab.keyboard.press("Tab")
        assert not tab.evaluate("document.activeElement.closest('.top, .composer, .stage')")
    tab.keyboard.press("Escape")
    page.until("document.getElementById('setup').inert")
    assert tab.evaluate("document.activeElement.id") == "setup-open"
    tab.click("#setup-open")
    tab.mouse.click(180, 40)  # beside it
    page.until("document.getElementById('setup').inert")
    small = tab.evaluate(
        """[...document.querySelectorAll("button")].filter((b) => b.checkVisibility())
          .map((b) => [b.id || b.textContent, b.getBoundingClientRect()])
          .filter(([, r]) => r.height < 34 || r.width < 34).map(([name]) => name)"""
    )
    assert small == []
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = {tab.evaluate(ground)}
    tab.emulate_media(color_scheme="dark")
    seen.add(tab.evaluate(ground))
    assert len(seen) == 2
    tab.click("#theme")  # light, whatever the system says
    lightest = max(seen, key=lambda colour: sum(map(int, re.findall(r"\d+", colour))))
    assert tab.evaluate(ground) == lightest
    tab.reload()
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"


def test_a_server_with_keys_is_given_one_that_the_tab_alone_remembers(page: Studio) -> None:
    tab, asked = page.page, []

    def guard(route: Route) -> None:
        key = route.request.headers.get("authorization")
        asked.append(key)
        if key == "Bearer right":
            models = route.fetch().json()
            other = models["data"][0] | {"id": "other"}
            route.fulfill(json=models | {"data": [*models["data"], other]})
        else:
            body = {"error": {"message": "a key is needed", "code": "invalid_api_key"}}
            route.fulfill(status=401, json=body)

    tab.route("**/v1/models", guard)
    tab.goto(page.address)
    for key in ("wrong", "right"):
        tab.wait_for_selector("#key-dialog[open]")
        tab.fill("#key", key)
        tab.keyboard.press("Enter")
        page.until(f"document.getElementById('key').value !== '{key}'")
    tab.wait_for_selector(".example")
    assert asked == [None, "Bearer wrong", "Bearer right"]
    assert "right" not in tab.evaluate("JSON.stringify(localStorage) + document.cookie")
    assert all("status of 401" in line for line in page.said)
    page.said.clear()
    # Of two models the chosen one is asked for, with what was set beside it.
    sent: list[dict[str, Any]] = []

    def listen(socket: Any) -> None:
        socket.on_message(lambda text: sent.append(json.loads(text)))

    tab.route_web_socket("**/v1/realtime/video", listen)
    assert tab.locator("#model option").all_inner_texts() == ["tiny", "other"]
    tab.select_option("#model", "other")
    tab.fill("#seed", "11")
    tab.press("#seed", "Tab")
    tab.click("label[for='length-5']")
    page.write(RED)
    deadline = time.monotonic() + 80
    while not sent:
        assert time.monotonic() < deadline
        tab.wait_for_timeout(50)
    (start,) = sent
    asked_for = {"prompt": RED, "model": "other", "seed": 11, "seconds": 5}
    assert start.items() >= asked_for.items()


def test_names_for_everything(page: Studio) -> None:
    tab = page.open().page
    tab.wait_for_selector(".example")
    nameless = tab.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, a, summary")]
          .filter((node) => node.tabIndex >= 0 && node.checkVisibility() && !(
            node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length))
          .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert tab.locator("[aria-live]").count() >= 2


def test_settings_say_what_does_not_fit(page: Studio) -> None:
    """What a distilled model has not is not asked for; steps that it cannot take are told."""
    tab = page.open(guidance="3").page
    model = studio.fetch(f"{page.address}/v1/models")["data"][0]
    request = """async (values) => {
      const { Settings } = await import("/static/settings.js");
      localStorage["helios.settings"] = JSON.stringify(values);
      const settings = new Settings();
      await settings.load();
      return settings.request("a ball"); }"""
    asked = tab.evaluate(request, {"guidance": "3", "steps": "4," * (model["scales"] - 1) + "4"})
    assert ("guidance_scale" in asked) is not model["defaults"]["distilled"]
    assert asked["steps"] == ([4] * model["scales"] if model["scales"] > 1 else 4)
    tab.evaluate("document.querySelector('details.more').open = true")
    assert tab.is_disabled("#guidance") is model["defaults"]["distilled"]
    for text, wrong in (("9, 9, 9, 9, 9", True), ("", False)):
        tab.fill("#steps", text)
        tab.press("#steps", "Tab")
        page.until(f"document.getElementById('steps-wrong').hidden === {str(not wrong).lower()}")
        assert tab.get_attribute("#steps", "aria-invalid") == str(wrong).lower()


def test_pace_never_runs_dry_and_uses_what_there_is(page: Studio) -> None:
    """Chunks of 1.375 s that take 3 s, 20 % up and down: there is always a picture."""
    report = page.open().page.evaluate(
        """async () => {
          const { Pace, SLOWEST } = await import("/static/pace.js");
          const run = (making) => {
            const pace = new Pace();
            let now = 0, ready = 0, dry = 0, sum = 0, count = 0, next = making(0), chunk = 0;
            pace.restart(0);
            while (chunk < 40) {
              now += 0.02;
              if (now >= next) {
                chunk += 1; ready += 1.375; pace.arrive(now); next = now + making(chunk);
              }
              if (chunk === 0) continue;
              const rate = pace.rate(now, ready, true);
              if (ready <= 0) dry += 0.02;
              ready = Math.max(0, ready - 0.02 * rate);
              if (chunk > 5) { sum += rate; count += 1; }
            }
            return { dry, rate: sum / count };
          };
          return { slow: run((k) => 3 * (1 + 0.2 * Math.sin(k * 2.4))), fast: run(() => 0.9),
                   done: new Pace().rate(0, 1, false), floor: SLOWEST };
        }"""
    )
    assert report["slow"]["dry"] < 0.7
    assert report["slow"]["rate"] == pytest.approx(1.375 / 3, rel=0.06)
    assert report["fast"] == {"dry": 0, "rate": pytest.approx(1.0)}
    assert report["done"] == 1


def test_settings_in_a_file_are_found(page: Studio, tmp_path: Path) -> None:
    """What the writer puts into an MP4 is what the page reads back from it."""
    from helios.media import VideoWriter

    path = tmp_path / "clip.mp4"
    settings = {"helios": "1", "prompt": "a “red” ball", "seed": 11}
    with VideoWriter(path, 64, 64, metadata=settings) as writer:
        writer.write(np.zeros((3, 64, 64, 3), np.uint8))
    page.open()
    read = """async (text) => {
      const { embedded } = await import("/static/embedded.js");
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      return embedded(new File([bytes], "clip.mp4")); }"""
    assert page.page.evaluate(read, base64.b64encode(path.read_bytes()).decode()) == settings
    assert page.page.evaluate(read, base64.b64encode(b"\0" * 400).decode()) is None


# ------------------------------------------------------------------------------ the files alone


def test_files_need_nothing_from_outside_and_no_inline_script() -> None:
    for path in STATIC.iterdir():
        text = path.read_text("utf-8")
        addresses = set(re.findall(r"https?://[^\"'\s)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name
        assert len(text.splitlines()) < 400, path.name
        if path.suffix == ".js":
            unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|new Function|document\.write"
            assert not re.search(unsafe, text)
            assert not re.search(r"TODO|console\.", text)
    page = (STATIC / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", page)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(theme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text."""
    css = (STATIC / "style.css").read_text("utf-8")
    start = css.index(":root {") if theme == "light" else css.index(':root[data-theme="dark"] {')
    block = css[start : css.index("}", start)]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    grounds = ("bg", "surface", "sunken")
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent", "bad") for ground in grounds]
    pairs += [("on-accent", "accent"), ("good", "bg"), ("ink", "accent-soft"), ("ink", "bad-soft")]
    for ink, ground in pairs:
        one, two = sorted((_luminance(colour[ink]), _luminance(colour[ground])), reverse=True)
        assert (one + 0.05) / (two + 0.05) >= 4.5, (ink, ground)
    if theme == "dark":
        # The same colours whether the system or the visitor asks for them.
        system = css.index(':root:not([data-theme="light"]) {')
        other = css[system : css.index("}", system)]
        assert dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", other)) == colour
