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


def test_windows_stack_and_what_one_does_not_know_the_whole_does_not():
    one = HistoryWindow(torch.randn(1, 3, 20, 2, 2), torch.ones(1, 20).bool(), torch.tensor([9]))
    two = HistoryWindow(torch.randn(2, 3, 20, 2, 2), torch.zeros(2, 20).bool(), torch.arange(2))
    both = HistoryWindow.stack([one, two])
    assert torch.equal(both.frames, torch.cat((one.frames, two.frames)))
    assert torch.equal(both.present, torch.cat((one.present, two.present)))
    assert both.elapsed.tolist() == [9, 0, 1]
    assert HistoryWindow.stack([one, HistoryWindow(two.frames, two.present)]).elapsed is None
    with pytest.raises(ValueError, match="elapsed"):
        HistoryWindow(two.frames, two.present, torch.arange(3))


def test_without_anchor_only_the_anchor_is_gone():
    whole = HistoryWindow(torch.randn(2, 3, 20, 2, 2), torch.ones(2, 20).bool(), torch.arange(2))
    left = whole.without_anchor()
    assert not left.anchor.any()
    assert not left.present[:, 0].any()
    assert torch.equal(left.frames[:, :, 1:], whole.frames[:, :, 1:])
    assert left.present[:, 1:].all()
    assert left.elapsed is whole.elapsed


def test_some_samples_of_a_batch():
    frames = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 2, 20, 2, 2)
    present = torch.tensor([[True], [False], [True]]).expand(3, 20)
    window = HistoryWindow(frames, present, torch.tensor([0, 9, 18]))
    part = window.of(slice(1, 3))
    assert part.frames[:, 0, 0, 0, 0].tolist() == [1, 2]
    assert part.present[:, 0].tolist() == [False, True]
    assert part.elapsed.tolist() == [9, 18]
    assert HistoryWindow(frames, present).of(slice(0, 1)).elapsed is None
