"""The studio and what must not be lost: other takes, kept chunks, files, a dead worker."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from .studio_page import BLUE, RED, Studio, blueness, fault, studio

pytestmark = pytest.mark.timeout(900)
CHUNK = 33 / 24
MIDDLE = 0.7
"""Seconds from the beginning of a chunk to where it is looked at."""


def last_session(page: Studio) -> dict[str, object]:
    name = page.page.evaluate("JSON.parse(localStorage['helios.last'])")
    session: dict[str, object] = studio.fetch(f"{page.address}/v1/sessions/{name}")
    return session


def test_reroll_keep_export_and_import(page: Studio, tmp_path: Path) -> None:
    tab = page.open().page
    page.write(RED)
    page.wait_chunks(2)
    tab.click("#stop")
    page.wait_phase("done")
    first, second = page.frame(MIDDLE), page.frame(CHUNK + MIDDLE)

    # Re-roll: the same words, the past untouched, other pixels from the chosen chunk on.
    tab.locator(".tile").nth(1).click()
    tab.click("#acts button:has-text('Re-roll')")
    page.until("document.querySelectorAll('.lane').length === 2")
    page.wait_chunks(1)
    tab.click("#stop")
    page.wait_phase("done")
    assert tab.locator(".lane").nth(1).locator(".run").all_inner_texts() == [RED]
    assert np.array_equal(page.frame(MIDDLE), first)
    other = page.frame(CHUNK + MIDDLE)
    assert np.abs(other - second).mean() > 2
    assert blueness(other) < -0.02

    # Keep: the state is on disk under a name, and in the library with its settings.
    tab.locator(".lane").nth(1).locator(".tile").nth(0).click()
    tab.click("#acts button:has-text('Keep')")
    page.until("document.getElementById('polite').textContent.includes('Kept')")
    session = last_session(page)
    assert session["name"] == f"{RED} (chunk 2)"
    assert 1 in session["kept"]  # type: ignore[operator]
    tab.click("#go-library")
    tab.fill("#search", "(chunk 2)")
    page.until("document.querySelectorAll('.card').length === 1")
    card = tab.locator(".card")
    facts = card.locator(".facts").inner_text()
    steps = session["settings"]["steps"]  # type: ignore[index]
    many = "+".join(map(str, steps)) if isinstance(steps, list) else f"{steps} step"
    for fact in ("seed 7", many, "192 × 128", "tiny"):
        assert fact in facts

    # One file out, forgotten, and in again: the same pixels.
    with tab.expect_download() as download:
        card.locator("[aria-label^=Export]").click()
    file = tmp_path / "mine.helios"
    download.value.save_as(file)
    card.locator("[aria-label=Delete]").click()
    tab.click("#ask-yes")
    tab.wait_for_selector("#nothing:not([hidden])")
    assert "No prompt" in tab.inner_text("#nothing-title")
    (tmp_path / "broken.helios").write_bytes(file.read_bytes()[:5000])
    tab.set_input_files("#session-file", tmp_path / "broken.helios")
    page.until("document.getElementById('banner').textContent.includes('not a session')")
    assert "status of 400" in page.complaint()
    tab.set_input_files("#session-file", file)
    page.until("document.querySelectorAll('.card').length === 1")
    card.locator("button:has-text('Open')").click()
    page.wait_chunks(2)
    page.wait_phase("done")
    assert np.array_equal(page.frame(MIDDLE), first)
    assert np.array_equal(page.frame(CHUNK + MIDDLE), other)


def test_a_dead_worker_is_waited_for_and_the_video_goes_on(page: Studio) -> None:
    tab = page.open().page
    lost = "goes on by itself"

    # In the first chunk nothing is on disk: the video begins again with its own seed.
    fault(page.address, "crash")
    page.write(RED)
    page.was_told(lost)
    page.wait_chunks(2)
    page.until("document.getElementById('banner').hidden")
    before = page.frame(MIDDLE)
    tab.click("#play")

    # Later it goes on from the newest state, with the change that was promised meanwhile.
    tab.locator(".tile").nth(1).click()
    tab.click("#acts button:has-text('Keep')")
    page.until("document.getElementById('polite').textContent.includes('Kept')")
    session = last_session(page)["id"]
    fault(page.address, "crash")
    page.write(BLUE)
    page.was_told(lost)
    page.until("document.querySelector('.ribbon .run:nth-child(2):not([data-pending=true])')")
    assert tab.locator(".ribbon .run").all_inner_texts() == [RED, BLUE]
    numbers = tab.locator(".tile .number").all_inner_texts()
    assert numbers == [str(i + 1) for i in range(len(numbers))]
    assert last_session(page)["id"] == session
    tab.click("#stop")
    page.wait_phase("done")
    assert np.array_equal(page.frame(MIDDLE), before)


def test_a_video_dropped_on_a_phone_in_the_dark(page: Studio, tmp_path: Path) -> None:
    from helios.media import VideoWriter

    tab = page.page
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.emulate_media(color_scheme="dark")
    with VideoWriter(tmp_path / "clip.mp4", 192, 128) as writer:
        writer.write(np.tile(np.array([20, 40, 210], np.uint8), (40, 128, 192, 1)))
    page.open(motion=0)
    transfer = tab.evaluate_handle(
        """(text) => {
          const carried = new DataTransfer();
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          carried.items.add(new File([bytes], "clip.mp4", { type: "video/mp4" }));
          return carried; }""",
        base64.b64encode((tmp_path / "clip.mp4").read_bytes()).decode(),
    )
    tab.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    assert tab.is_visible("#drop")
    tab.dispatch_event("body", "drop", {"dataTransfer": transfer})
    assert tab.is_hidden("#drop")
    tab.wait_for_selector(".start-card:has-text('40 frames')")
    tab.keyboard.press("Escape")  # the settings had opened to show it
    page.write("a blue ball rests on water")
    page.wait_chunks(2)
    assert str(last_session(page)["settings"]["video"]).startswith("file_")  # type: ignore[index]

    # While it plays: nothing beside the screen, the picture as wide as it is, the prompt in reach.
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    stage, bar = tab.locator("#stage").bounding_box(), tab.locator("#bar").bounding_box()
    assert stage is not None
    assert bar is not None
    assert stage["width"] / stage["height"] == pytest.approx(1.5, abs=1e-3)
    assert bar["y"] + bar["height"] <= 844
    small = tab.evaluate(
        """[...document.querySelectorAll("button")].filter((b) => b.checkVisibility())
          .map((b) => [b.id || b.textContent, b.getBoundingClientRect()])
          .filter(([, r]) => r.height < 34 || r.width < 34).map(([name]) => name)"""
    )
    assert small == []
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, ground[4:-1].split(","))) < 120
    tab.click("#stop")
    page.wait_phase("done")
    assert blueness(page.frame(MIDDLE)) > 0.3

    tab.click("#full")
    page.until("document.fullscreenElement?.id === 'stage'")
    tab.keyboard.press("f")
    page.until("document.fullscreenElement === null")
