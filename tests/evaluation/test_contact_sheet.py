from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helios.evaluation.contact_sheet import GAP, MARGIN, contact_sheet, save_contact_sheet


def video(*colours: int) -> np.ndarray:
    """One frame per grey value, 16x24."""
    return np.stack([np.full((16, 24, 3), value, np.uint8) for value in colours])


def test_rows_hold_evenly_spaced_frames() -> None:
    sheet = contact_sheet([video(0, 50, 100, 150, 200)], ["a red ball"], columns=3)
    pixels = np.asarray(sheet)
    row = pixels[-MARGIN - 8]
    assert [row[MARGIN + column * (24 + GAP) + 12, 0] for column in range(3)] == [0, 100, 200]
    assert sheet.width == 2 * MARGIN + 3 * 24 + 2 * GAP


def test_every_video_has_its_row_below_its_caption() -> None:
    one = contact_sheet([video(9)], ["a"])
    two = contact_sheet([video(9), video(90)], ["a", "b"])
    pixels = np.asarray(two)
    step = two.height - one.height
    assert pixels[-MARGIN - 8, MARGIN + 12].tolist() == [90, 90, 90]
    assert pixels[-MARGIN - 8 - step, MARGIN + 12].tolist() == [9, 9, 9]
    ink = (pixels[-MARGIN - 16 - step // 2 : -MARGIN - 16, MARGIN : MARGIN + 12] < 60).any()
    assert ink, "the caption is drawn between the rows"


def test_a_long_caption_is_wrapped_and_makes_the_sheet_taller() -> None:
    words = "a small red ball bounces on green grass next to a cone"
    short = contact_sheet([video(1, 2)], ["ball"])
    assert contact_sheet([video(1, 2)], [words]).height > short.height


def test_the_picture_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "sheet.webp"
    save_contact_sheet(path, [video(1, 2, 3)], ["a ball"])
    with Image.open(path) as image:
        image.load()
        assert image.format == "WEBP"
    assert [file.name for file in path.parent.iterdir()] == ["sheet.webp"]


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="as many captions"):
        contact_sheet([video(1)], [])
    with pytest.raises(ValueError, match="share one shape"):
        contact_sheet([video(1), video(1, 2)], ["a", "b"])
    with pytest.raises(ValueError, match="columns"):
        contact_sheet([video(1)], ["a"], columns=0)
