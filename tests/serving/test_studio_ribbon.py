"""The ribbon of prompts: where the scene changes is seen, and moved by hand or by key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from .studio_page import BLUE, RED, Studio, blueness

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = pytest.mark.timeout(900)
CHUNK = 33 / 24


def lands(dot: Locator) -> int:
    """The chunk, from 1, that the dot stands before."""
    return int(dot.get_attribute("aria-valuenow") or 0)


def test_the_dot_of_a_change_is_dragged_to_where_it_lands(page: Studio) -> None:
    tab = page.open().page
    page.write(RED)
    page.wait_chunks(1)
    assert tab.locator(".seam").count() == 0  # a first prompt is no change
    # While the picture stands still no more is made than lies ready: there is time to act.
    tab.click("#play")
    page.wait_chunks(4)
    page.write(BLUE)
    tab.wait_for_selector(".seam[role=slider]")
    dot = tab.locator(".seam[role=slider]")
    # By hand: two chunks to the right.
    tile = tab.locator(".tile").first.bounding_box()
    box = dot.bounding_box()
    assert tile is not None
    assert box is not None
    before, width = lands(dot), tile["width"] + 4
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + width, y, steps=3)
    tab.mouse.move(x + 2.2 * width, y, steps=5)
    dragged = lands(dot)
    assert dragged == before + 2
    tab.mouse.up()
    page.until(f"document.getElementById('notes').textContent.includes('chunk {dragged}')")
    # By key: one more, two back, one more.
    dot.focus()
    for key, chunk in (("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", -1), ("ArrowRight", 0)):
        tab.keyboard.press(key)
        page.until(
            f"document.querySelector('.seam[role=slider]')?.ariaValueNow === '{dragged + chunk}'"
        )
    assert tab.evaluate("document.activeElement.role") == "slider"
    # Nothing lands in a chunk that is made already.
    tab.keyboard.press("Home")
    now = "document.querySelector('.seam[role=slider]')?.ariaValueNow"
    page.until(f"{now} < {dragged}")
    soonest, made = lands(dot), page.chunks
    assert soonest == made + 2  # the next one may be in the making
    tab.keyboard.press("End")
    page.until(f"{now} === '{made + 41}'")
    tab.keyboard.press("Home")
    for _ in range(dragged - soonest):
        tab.keyboard.press("ArrowRight")
    page.until(f"document.getElementById('notes').textContent.includes('chunk {dragged}“')")
    tab.locator(".tile").last.click()
    tab.click("#play")
    page.wait_chunks(dragged)
    tab.click("#stop")
    page.wait_phase("done")

    assert tab.locator(".ribbon .run").all_inner_texts() == [RED, BLUE]
    (seam,) = tab.locator(".seam").all()
    assert seam.get_attribute("role") is None
    column = re.match(r"\d+", seam.evaluate("dot => dot.style.gridColumn"))
    assert column is not None
    assert int(column[0]) == dragged
    border = (dragged - 1) * CHUNK
    assert blueness(page.frame(border - 0.06)) < -0.02
    assert blueness(page.frame(border + 1.1)) > 0.02


def test_a_branch_has_a_dot_where_it_leaves(page: Studio) -> None:
    tab = page.open().page
    page.write(RED)
    page.wait_chunks(2)
    tab.click("#stop")
    page.wait_phase("done")
    tab.locator(".tile").nth(1).click()
    tab.click("#acts button:has-text('Branch')")
    page.write(BLUE)
    page.until("document.querySelectorAll('.lane').length === 2")
    page.wait_chunks(1)
    tab.click("#stop")
    page.wait_phase("done")
    first, second = tab.locator(".lane").all()
    assert first.locator(".seam").count() == 0
    assert second.locator(".seam").count() == 1
    dot = second.locator(".seam").bounding_box()
    tile = second.locator(".tile").first.bounding_box()
    assert dot is not None
    assert tile is not None
    assert abs(dot["x"] + dot["width"] / 2 - (tile["x"] - 2)) <= 1
    # Made again with another seed the branch still asks for the same: there is nothing to change.
    second.locator(".tile").first.click()
    tab.click("#acts button:has-text('Re-roll')")
    page.until("document.querySelectorAll('.lane').length === 3")
    page.wait_chunks(1)
    assert tab.input_value("#prompt") == BLUE
    assert tab.inner_text("#send span") == "Change"
    assert tab.is_disabled("#send")
    assert tab.locator(".lane").nth(2).locator(".seam").count() == 1
    tab.click("#stop")
    page.wait_phase("done")
