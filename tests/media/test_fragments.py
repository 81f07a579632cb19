"""Fragments: the same frames are always the same bytes, whatever instructions code them."""

from __future__ import annotations

import numpy as np
import pytest

from helios.media import FragmentEncoder


def fragment(frames: np.ndarray) -> bytes:
    _, height, width, _ = frames.shape
    return FragmentEncoder(width, height, 24).encode(frames)


def test_older_instructions_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 6, 3), np.uint8)
    still = noise.repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(still, step, 1) for step in range(9)])
    coded = fragment(frames)
    assert fragment(frames) == coded
    monkeypatch.setattr("helios.media.fragments._instructions", dict)
    assert fragment(frames) == coded
    monkeypatch.setattr("helios.media.fragments._instructions", lambda: {"x264-params": "asm=sse2"})
    assert fragment(frames) == coded
