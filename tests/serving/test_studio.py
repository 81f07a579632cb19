"""The studio in a real browser, in front of a real server with the bundled model."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from .studio_page import BLUE, RED, SLOW, Studio, blueness, studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

STATIC = Path(__file__).parents[2] / "helios" / "serving" / "static"


# -------------------------------------------------------------------------------- the live stage


def test_it_plays_while_it_is_made_and_a_change_lands_where_announced(page: Studio) -> None:
    # 240 frames are eight chunks: wherever the change lands, a whole chunk follows its border.
    tab = page.open(length="10", steps=SLOW).page
    page.write(RED)
    page.until("document.getElementById('video').currentTime > 0.2")
    assert page.chunks < 8  # the last one cannot exist yet
    assert page.phase == "making"
    before = page.time
    page.write(BLUE)
    tab.wait_for_selector("#notes .note")
    told = tab.inner_text("#notes .note")
    lands = int(re.search(r"chunk (\d+)", told)[1]) - 1  # type: ignore[index]
    assert 1 <= lands <= 6
    assert BLUE in told
    assert tab.locator(".run[data-pending=true]").count() == 1
    page.wait_phase("done")
    assert page.time > before
    runs = tab.locator(".ribbon .run").all_inner_texts()
    assert runs == [RED, BLUE]
    # On the screen: red up to the very border, blue after it.
    border = lands * 33 / 24
    last_old, new = page.frame(border - 0.06), page.frame(border + 1.1)
    assert blueness(last_old) < -0.02
    assert blueness(new) > 0.02
    assert abs(float(tab.evaluate("document.getElementById('video').duration")) - 10.0) < 0.01


def test_branch_leaves_what_was_and_extend_goes_on(page: Studio) -> None:
    tab = page.open().page
    page.write(RED)
    page.wait_chunks(2)
    tab.click("#stop")
    page.wait_phase("done")
    made = page.chunks
    old_first, old_second = page.frame(0.7), page.frame(33 / 24 + 1.1)

    tab.locator(".tile").nth(1).click()
    tab.click("#acts button:has-text('Branch')")
    assert "chunk 2" in tab.inner_text("#notes")
    page.write(BLUE)
    page.until("document.querySelectorAll('.lane').length === 2")
    page.wait_chunks(1)
    tab.click("#stop")
    page.wait_phase("done")
    first, second = page.frame(0.7), page.frame(33 / 24 + 1.1)
    assert np.array_equal(first, old_first)
    assert blueness(old_second) < -0.02
    assert blueness(second) > 0.02
    assert tab.locator(".lane").nth(0).locator(".tile").count() == made

    # Back to the first take: its second chunk is the old one, bit for bit.
    branch_chunks = page.chunks
    tab.locator(".lane").nth(0).locator(".tile").nth(1).click()
    page.until("document.querySelector('.lane').dataset.current === 'true'")
    page.wait_phase("done")
    assert np.array_equal(page.frame(33 / 24 + 1.1), old_second)

    tab.locator(".lane").nth(1).locator(".tile").nth(0).click()
    page.until("document.querySelectorAll('.lane')[1].dataset.current === 'true'")
    page.wait_phase("done")
    tab.click("#extend")
    page.wait_chunks(branch_chunks + 1)
    tab.click("#stop")
    page.wait_phase("done")
    assert np.array_equal(page.frame(33 / 24 + 1.1), second)


def test_keyboard_only(page: Studio) -> None:
    tab = page.open().page
    assert tab.evaluate("document.activeElement.id") == "prompt"
    tab.keyboard.type(RED)
    tab.keyboard.press("Enter")
    page.wait_chunks(1)
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.id") != "prompt"
    tab.keyboard.press("Space")
    tab.wait_for_selector("#play[aria-label=Play]")
    tab.keyboard.press("s")
    page.wait_phase("done")
    tab.keyboard.press("?")
    assert tab.locator("dialog#help[open]").count() == 1
    tab.keyboard.press("Escape")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("r")
    page.until("document.querySelectorAll('.lane').length === 2")
    page.wait_chunks(1)
    tab.keyboard.press("s")
    page.wait_phase("done")
    tab.keyboard.press("b")
    assert tab.evaluate("document.activeElement.id") == "prompt"
    assert "Branch from chunk" in tab.inner_text("#notes")
    tab.keyboard.press("Escape")
    assert tab.locator("#notes .note").count() == 0
    tab.keyboard.press("Escape")
    tab.keyboard.press("l")
    tab.wait_for_selector(".card")
    # Every place that Tab reaches has a name and shows that it has the focus.
    for _ in range(12):
        tab.keyboard.press("Tab")
        name, outline = tab.evaluate(
            """() => { const at = document.activeElement; const style = getComputedStyle(at);
              return [at.getAttribute("aria-label") ?? at.textContent.trim() ?? "",
                      style.outlineStyle !== "none" || at.closest(".bar, .search") !== null]; }"""
        )
        assert outline, name
    tab.keyboard.press("Escape")
    tab.keyboard.press("l")
    tab.wait_for_selector("#studio:not([hidden])")


def test_the_connection_comes_back_and_nothing_is_lost(page: Studio) -> None:
    sockets: list[Any] = []

    def through(socket: Any) -> None:
        sockets.append(socket.connect_to_server())

    page.page.route_web_socket("**/v1/realtime/video", through)
    tab = page.open().page
    page.write(RED)
    page.wait_chunks(1)
    before = page.frame(0.7)
    sockets[0].close()
    page.until("document.getElementById('banner').textContent.includes('connection')")
    page.wait_chunks(2)
    assert len(sockets) == 2
    assert tab.is_hidden("#banner")
    assert np.array_equal(page.frame(0.7), before)
    starts = tab.locator(".tile .number").all_inner_texts()
    assert starts == [str(i + 1) for i in range(len(starts))]
    tab.click("#stop")
    page.wait_phase("done")
    # A visitor who comes back finds the last video.
    tab.reload()
    page.until("document.getElementById('banner').textContent.includes('still here')")
    tab.click("#banner button")
    page.wait_chunks(2)
    page.wait_phase("done")


def test_an_image_to_start_from_and_the_library(page: Studio, tmp_path: Path) -> None:
    from PIL import Image

    tab = page.open(length="5").page
    picture = np.zeros((128, 192, 3), np.uint8)
    picture[..., 2] = 220
    Image.fromarray(picture).save(tmp_path / "blue.png")
    tab.set_input_files("#file", tmp_path / "blue.png")
    tab.wait_for_selector(".start-card:has-text('192 × 128')")
    assert tab.locator("#motion").count() == 1
    (tmp_path / "not.png").write_text("no picture")
    tab.set_input_files("#file", tmp_path / "not.png")
    tab.wait_for_selector("#banner:not([hidden])")
    # The browser itself notes the refusal; nothing else may be there.
    assert "status of 400" in page.said.pop()
    tab.set_input_files("#file", tmp_path / "blue.png")
    tab.wait_for_selector(".start-card:has-text('192 × 128')")
    hostile = "a <img src=x onerror=alert(1)> ball & <b>cube</b>"
    page.write(hostile)
    page.wait_chunks(1)
    tab.click("#stop")
    page.wait_phase("done")
    last = tab.evaluate("JSON.parse(localStorage['helios.last'])")
    settings = studio.fetch(f"{page.address}/v1/sessions/{last}")["settings"]
    assert settings["image"].startswith("file_")
    assert settings["image_noise"] == [0.111, 0.135]  # in the middle of the slider

    tab.click("#go-library")
    tab.wait_for_selector(".card")
    tab.fill("#search", "onerror")
    page.until("document.querySelectorAll('.card').length === 1")
    card = tab.locator(".card").first
    assert card.locator("h2").inner_text() == hostile
    assert "seed 7" in card.inner_text()
    with tab.expect_download() as download:
        card.locator("[aria-label=Download]").click()
    import av

    with av.open(str(download.value.path())) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 33
    card.locator("[aria-label='Use these settings']").click()
    assert tab.input_value("#prompt") == hostile
    tab.click("#go-library")
    tab.locator(".card [aria-label=Delete]").first.click()
    tab.click("#ask-yes")
    tab.wait_for_selector("#nothing:not([hidden])")


def test_a_second_visitor_is_told_the_place_and_adapters_change_live(
    page: Studio, browser: Browser
) -> None:
    tab = page.open().page
    tab.click("#lora-pastel")
    page.write(RED)
    page.until("document.querySelectorAll('#health dd')[1].textContent !== '–'")
    context = browser.new_context()
    second = Studio(context.new_page(), page.address).open(length="5")
    second.write(BLUE)
    second.until("document.getElementById('curtain-text').textContent.startsWith('You are next')")
    assert second.page.inner_text("#h-place dd") == "1"

    page.wait_chunks(1)
    mine = f"{page.address}/v1/sessions/{tab.evaluate('JSON.parse(localStorage[`helios.last`])')}"
    assert studio.fetch(mine)["loras"] == [{"name": "pastel", "scale": 1.0}]
    tab.click("#lora-pastel")
    deadline = time.monotonic() + 20
    while studio.fetch(mine)["loras"]:
        assert time.monotonic() < deadline
        tab.wait_for_timeout(100)
    # The first visitor leaves: the place is free, whatever was just asked for.
    tab.goto(f"{page.address}/static/icon.svg")
    second.until("document.body.dataset.phase === 'making'")
    assert second.said == []
    context.close()


# --------------------------------------------------------------------- looks, sizes, one by one


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
    tab.keyboard.press("Escape")
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
            route.continue_()
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
