"""Pictures of a run: frames over time as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helios.storage import atomic_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["write_sheet"]


def write_sheet(path: Path, clips: Sequence[NDArray[np.uint8]], columns: int = 8) -> None:
    """Write one row per clip with ``columns`` frames spread evenly over it.

    Args:
        path: of the PNG; its folder is made if missing.
        clips: ``uint8 [T, H, W, 3]`` each, all of one size.
        columns: frames shown of each clip.
    """
    from PIL import Image

    rows = []
    for clip in clips:
        picked = np.linspace(0, len(clip) - 1, columns).round().astype(int)
        rows.append(np.concatenate(list(clip[picked]), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")
