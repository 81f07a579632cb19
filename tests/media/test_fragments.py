"""Fragments: the same frames are always the same bytes, whatever instructions code them."""

from __future__ import annotations

import numpy as np
import pytest

from helios.media import FragmentEncoder


def fragment(frames: np.ndarray) -> bytes:
    _, height, width, _ = frames.shape
    return FragmentEncoder(width, height, 24).encode(frames)


@pytest.mark.parametrize("instructions", ["asm=0", "asm=sse2", "asm=auto"])
def test_other_instructions_give_the_same_bytes(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``cpu-independent`` these frames come out in three ways."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 6, 3), np.uint8)
    still = noise.repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(still, step, 1) for step in range(9)])
    coded = fragment(frames)
    assert fragment(frames) == coded
    monkeypatch.setattr(
        "helios.media.fragments._reproducible", lambda: f"cpu-independent=1:{instructions}"
    )
    assert fragment(frames) == coded
