"""The studio in a real browser, in front of a real server with the bundled model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from .studio_page import BLUE, PAUSE, RED, Studio, blueness, fault, slowed, studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.timeout(900)


# -------------------------------------------------------------------------------- the live stage


def test_it_plays_while_it_is_made_and_a_change_lands_where_announced(page: Studio) -> None:
    # 240 frames are eight chunks: wherever the change lands, a whole chunk follows its border.
    # Up to the answer even more slowly: whoever asks may have to wait for the processor too.
    with slowed(page.address, 3 * PAUSE):
        tab = page.open(length="10").page
        # What the page shows for a while, noted by the page itself.
        tab.evaluate(
            """() => {
              window.seen = { pending: 0, last: null };
              const look = () => {
                const pending = document.querySelectorAll(".run[data-pending=true]").length;
                window.seen.pending = Math.max(window.seen.pending, pending);
                window.seen.last ??= document.querySelector(".seam[role=slider]")?.ariaValueMax;
              };
              new MutationObserver(look)
                .observe(document.getElementById("lanes"), { childList: true, subtree: true }); }"""
        )
        page.write(RED)
        page.until("document.getElementById('video').currentTime > 0.2")
        assert page.chunks < 8  # the last one cannot exist yet
        assert page.phase == "making"
        before = page.time
        page.write(BLUE)
        # At once that it was sent, and as soon as the model has looked up where it lands.
        assert BLUE in tab.inner_text("#notes .note")
        tab.wait_for_selector("#notes .note:has-text('Lands in')")
        told = tab.inner_text("#notes .note")
        lands = int(re.search(r"chunk (\d+)", told)[1]) - 1  # type: ignore[index]
        assert 1 <= lands <= 6
        assert BLUE in told
        page.until("window.seen.last")
        assert tab.evaluate("window.seen") == {"pending": 1, "last": "8"}
        fault(page.address, "slow", PAUSE)
        tab.emulate_media(reduced_motion="reduce")
        still = "getComputedStyle(document.querySelector('.note .dot')).animationName"
        assert tab.evaluate(still) == "none"
        _says_what_it_can_keep_up(page)
    page.wait_phase("done")
    assert page.time > before
    runs = tab.locator(".ribbon .run").all_inner_texts()
    assert runs == [RED, BLUE]
    thumbnails = "[...document.querySelectorAll('.tile img')].filter((one) => one.naturalWidth > 0)"
    assert tab.evaluate(f"{thumbnails}.length") == page.chunks == 8
    # On the screen: red up to the very border, blue after it.
    border = lands * 33 / 24
    last_old, new = page.frame(border - 0.06), page.frame(border + 1.1)
    assert blueness(last_old) < -0.02
    assert blueness(new) > 0.02
    assert abs(float(tab.evaluate("document.getElementById('video').duration")) - 10.0) < 0.01
    with tab.expect_download() as download:
        tab.click("#save")
    assert _frames(download.value.path()) == 240


def _says_what_it_can_keep_up(page: Studio) -> None:
    """Slower than real time: the badge says the rate of the picture, the strip the model's."""
    # The first moment at which both agree: the badge is written as soon as a chunk comes, the
    # rate follows a fifth of a second later. One decimal of either is left out.
    page.page.evaluate(
        """() => {
          const find = (name) => document.getElementById(name);
          const look = setInterval(() => {
            const rate = find("video").playbackRate;
            const fps = Number(find("badge").textContent.match(/^Live at ([0-9.]+) fps$/)?.[1]);
            const shown = ["h-fps", "h-ratio", "h-memory"].map(find);
            const agree = rate < 1 && Math.abs(fps - 24 * rate) <= 0.6 + 0.05 * fps;
            if (!agree || !shown.every((one) => one.checkVisibility())) return;
            clearInterval(look);
            window.told_health = shown.map((one) => one.querySelector("dd").textContent);
          }, 50); }"""
    )
    page.until("window.told_health")
    health = page.page.evaluate("window.told_health")
    speed, ratio = (float(re.match(r"[\d.]+", text)[0]) for text in health[:2])  # type: ignore[index]
    assert ratio < 1
    assert speed / 24 == pytest.approx(ratio, rel=0.1, abs=0.02)
    assert re.fullmatch(r"[\d.]+ [MG]B", health[2])


def _frames(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


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
    # It goes on from where the picture stands, not from the beginning.
    page.until("document.getElementById('video').ended")
    end = page.time
    tab.click("#extend")
    page.wait_chunks(branch_chunks + 1)
    page.until(f"document.getElementById('video').currentTime > {end}")
    tab.click("#stop")
    page.wait_phase("done")
    assert page.time >= end
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
    tab.keyboard.press("k")
    page.until("document.getElementById('polite').textContent.includes('Kept')")
    with tab.expect_download():
        tab.keyboard.press("d")
    made = page.chunks
    tab.keyboard.press("e")
    page.wait_chunks(made + 1)
    tab.keyboard.press("s")
    page.wait_phase("done")
    tab.keyboard.press(",")
    assert tab.evaluate("document.activeElement.closest('#setup') !== null")
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.id") == "prompt"
    tab.keyboard.press("Escape")
    tab.keyboard.press("t")
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    assert _missed_by_tab(page) == []
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
    tab.keyboard.press("n")
    page.wait_phase("empty")
    tab.keyboard.press("Escape")
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "prompt"


def _missed_by_tab(page: Studio) -> list[str]:
    """What can be pressed, chosen or filled in and is not reached by Tab alone."""
    tab = page.page
    tab.evaluate(
        """() => {
          document.querySelector("details.more").open = true;
          window.reached = new Set();
          document.addEventListener("focusin", (event) => window.reached.add(event.target));
          document.activeElement.blur(); }"""
    )
    for _ in range(60):
        tab.keyboard.press("Tab")
    missed: list[str] = tab.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, summary")]
          .filter((one) => one.checkVisibility() && !one.disabled && !window.reached.has(one))
          // Arrows go from tile to tile, and among the choices of one question.
          .filter((one) => !one.matches(".tile, [type=file], [type=radio]:not(:checked)"))
          .map((one) => one.id || one.outerHTML)"""
    )
    tab.evaluate("document.activeElement.blur()")
    return missed


def test_the_connection_comes_back_and_nothing_is_lost(page: Studio) -> None:
    sockets: list[Any] = []

    def through(socket: Any) -> None:
        sockets.append(socket.connect_to_server())

    page.page.route_web_socket("**/v1/realtime/video", through)
    tab = page.open().page
    page.write(RED)
    page.wait_chunks(1)
    before = page.frame(0.7)
    tab.evaluate(
        """() => { const line = document.getElementById("curtain-text"); window.curtain = [];
          new MutationObserver(() => window.curtain.push(line.textContent))
            .observe(line, { childList: true }); }"""
    )
    tab.click("#play")
    sockets[0].close()
    page.until("window.told.some((text) => text.includes('connection'))")
    page.until("window.curtain.includes('Waiting for the server')")
    page.write(BLUE)
    page.until("document.getElementById('banner').hidden")
    page.wait_chunks(2)
    assert len(sockets) == 2
    # A change that was asked for meanwhile lands; nothing but the connection was spoken of.
    page.until("document.querySelectorAll('.ribbon .run:not([data-pending=true])').length === 2")
    assert tab.evaluate("window.told.filter((text) => !text.startsWith('The connection'))") == []
    assert page.time > 0.6
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
    assert "status of 400" in page.complaint()
    # What was there before stays.
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
    assert _frames(download.value.path()) >= 33
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
    tab.fill("[aria-label='Weight of pastel']", "0.5")
    page.write(RED)
    page.until("document.querySelectorAll('#health dd')[1].textContent !== '–'")
    context = browser.new_context()
    second = Studio(context.new_page(), page.address).open(length="5")
    second.write(BLUE)
    second.until("document.getElementById('curtain-text').textContent.startsWith('You are next')")
    assert second.page.inner_text("#h-place dd") == "1"

    page.wait_chunks(1)
    mine = f"{page.address}/v1/sessions/{tab.evaluate('JSON.parse(localStorage[`helios.last`])')}"
    assert studio.fetch(mine)["loras"] == [{"name": "pastel", "scale": 0.5}]
    tab.click("#lora-pastel")
    deadline = time.monotonic() + 80
    while studio.fetch(mine)["loras"]:
        assert time.monotonic() < deadline
        tab.wait_for_timeout(100)
    # The first visitor leaves: the place is free, whatever was just asked for.
    tab.goto(f"{page.address}/static/icon.svg")
    second.until("document.body.dataset.phase === 'making'")
    assert second.said == []
    context.close()
