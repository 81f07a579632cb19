import pytest
import torch

from helios.history import (
    CHUNK_POSITIONS,
    HISTORY_FRAMES,
    LONG_POSITIONS,
    MID_POSITIONS,
    SHORT_POSITIONS,
    HistoryWindow,
)


def window():
    frames = torch.arange(20.0).view(1, 1, 20, 1, 1).expand(2, 3, 20, 4, 5)
    return HistoryWindow(frames, torch.ones(2, 20, dtype=torch.bool))


def test_groups_hold_the_frames_of_their_positions():
    w = window()
    groups = {
        "anchor": (w.anchor, (0,)),
        "long": (w.long, LONG_POSITIONS),
        "mid": (w.mid, MID_POSITIONS),
        "recent": (w.recent, (19,)),
        "short": (w.short, SHORT_POSITIONS),
    }
    for name, (group, positions) in groups.items():
        assert group[0, 0, :, 0, 0].tolist() == list(positions), name


def test_positions_cover_the_window_once():
    positions = [*SHORT_POSITIONS, *LONG_POSITIONS, *MID_POSITIONS, *CHUNK_POSITIONS]
    assert sorted(positions) == list(range(29))
    assert HISTORY_FRAMES + len(CHUNK_POSITIONS) == 29


def test_moving_changes_the_dtype_of_latents_only():
    moved = window().to("cpu", torch.bfloat16)
    assert moved.frames.dtype == torch.bfloat16
    assert moved.present.dtype == torch.bool


def test_shapes_are_checked():
    w = window()
    with pytest.raises(ValueError, match="frames"):
        HistoryWindow(w.frames[:, :, 1:], w.present)
    with pytest.raises(ValueError, match="present"):
        HistoryWindow(w.frames, w.present[:1])
