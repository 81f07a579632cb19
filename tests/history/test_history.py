import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.history import History, HistoryWindow, cut_window


def clip(sections, batch=2, channels=3, rows=2, columns=4, seed=0):
    shape = (batch, channels, 9 * sections, rows, columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_the_book(sections, k):
    """The specification's own recipe: zeros in front, slices, anchor zeroed at the start."""
    batch, channels, _, rows, columns = sections.shape
    padded = torch.cat((torch.zeros(batch, channels, 19, rows, columns), sections), dim=2)
    anchor = sections[:, :, :1] * (k > 0)
    window = torch.cat((anchor, padded[:, :, 9 * k : 9 * k + 19]), dim=2)
    present = torch.tensor([k > 0, *(9 * k - 19 + i >= 0 for i in range(19))])
    return window, present.expand(batch, 20), padded[:, :, 9 * k + 19 : 9 * k + 28]


def same(one: HistoryWindow, other: HistoryWindow):
    return torch.equal(one.frames, other.frames) and torch.equal(one.present, other.present)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), sections=st.integers(1, 7), batch=st.integers(1, 3))
def test_cut_follows_the_recipe(data, sections, batch):
    k = data.draw(st.integers(0, sections - 1))
    latents = clip(sections, batch)
    window, target = cut_window(latents, k)
    frames, present, expected = by_the_book(latents, k)
    assert torch.equal(window.frames, frames)
    assert torch.equal(window.present, present)
    assert torch.equal(target, expected)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), sections=st.integers(1, 6), batch=st.integers(1, 4))
def test_each_sample_may_pick_its_own_section(data, sections, batch):
    k = data.draw(st.lists(st.integers(0, sections - 1), min_size=batch, max_size=batch))
    latents = clip(sections, batch)
    window, target = cut_window(latents, torch.tensor(k))
    for index, section in enumerate(k):
        alone, expected = cut_window(latents[index : index + 1], section)
        assert torch.equal(window.frames[index : index + 1], alone.frames)
        assert torch.equal(window.present[index : index + 1], alone.present)
        assert torch.equal(target[index : index + 1], expected)


@settings(max_examples=20, deadline=None)
@given(sections=st.integers(1, 7))
def test_targets_put_together_are_the_video(sections):
    latents = clip(sections)
    targets = [cut_window(latents, k)[1] for k in range(sections)]
    assert torch.equal(torch.cat(targets, dim=2), latents)


@settings(max_examples=20, deadline=None)
@given(sections=st.integers(1, 7))
def test_streaming_gives_the_windows_of_training(sections):
    latents = clip(sections)
    history = History.empty(2, 3, 2, 4)
    for k in range(sections):
        window, target = cut_window(latents, k)
        assert same(history.window(), window)
        history = history.append(target)


def test_absent_frames_are_zero_whatever_the_clip_holds():
    latents = torch.full((1, 3, 9, 2, 2), float("nan"))
    window, _ = cut_window(latents, 0)
    assert torch.equal(window.frames, torch.zeros_like(window.frames))
    assert not window.present.any()


def test_cut_keeps_the_dtype():
    window, target = cut_window(clip(3).bfloat16(), torch.tensor([0, 2]))
    assert window.frames.dtype == target.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "k", [-1, 2, torch.tensor([0, 2]), torch.tensor([0, -1]), torch.tensor([0]), torch.zeros(2)]
)
def test_sections_outside_of_the_clip(k):
    with pytest.raises(ValueError, match="k must be"):
        cut_window(clip(2), k)


@pytest.mark.parametrize("frames", [0, 8, 20])
def test_clips_are_whole_sections(frames):
    with pytest.raises(ValueError, match="whole sections"):
        cut_window(torch.zeros(1, 3, frames, 2, 2), 0)


def test_memory_is_constant_and_old_values_stay():
    history = History.empty(1, 3, 2, 4)
    before = history.window().frames.clone()
    later = history
    for seed in range(20):
        later = later.append(clip(1, 1, seed=seed))
    assert later.window().frames.shape == history.window().frames.shape
    assert torch.equal(history.window().frames, before)
    assert torch.equal(later.window().anchor, clip(1, 1, seed=0)[:, :, :1])
    assert torch.equal(later.window().recent, clip(1, 1, seed=19)[:, :, -1:])
    assert later.window().present.all()


def test_an_image_is_anchor_and_most_recent_frame():
    image, still = (clip(1, seed=s)[:, :, :1] for s in (1, 2))
    window = History.from_image(image, still).window()
    assert torch.equal(window.anchor, image)
    assert torch.equal(window.recent, still)
    assert not window.frames[:, :, 1:-1].any()
    assert window.present[0].nonzero().flatten().tolist() == [0, 19]


@pytest.mark.parametrize("frames", [1, 9, 18, 27])
def test_a_video_leaves_its_last_frames(frames):
    anchor, latents = clip(1, seed=1)[:, :, :1], clip(3, seed=2)[:, :, :frames]
    window = History.from_video(anchor, latents).window()
    assert torch.equal(window.anchor, anchor)
    kept = min(frames, 19)
    assert torch.equal(window.frames[:, :, -kept:], latents[:, :, -kept:])
    assert not window.frames[:, :, 1 : 20 - kept].any()
    assert window.present[0].tolist() == [True, *[False] * (19 - kept), *[True] * kept]


def test_a_given_anchor_is_kept():
    image, still = (clip(1, seed=s)[:, :, :1] for s in (1, 2))
    history = History.from_image(image, still).append(clip(1, seed=3))
    assert torch.equal(history.window().anchor, image)


def test_the_anchor_may_move():
    history = History.empty(2, 3, 2, 4).append(clip(1, seed=1)).append(clip(1, seed=2))
    frame = clip(1, seed=2)[:, :, :1]
    moved = history.moved_anchor(frame).window()
    assert torch.equal(moved.anchor, frame)
    assert torch.equal(moved.frames[:, :, 1:], history.window().frames[:, :, 1:])


def test_samples_may_differ_in_their_past():
    """A training window goes on as a stream, each sample from where it is."""
    latents = clip(4, 3)
    window, target = cut_window(latents, torch.tensor([0, 1, 2]))
    following, _ = cut_window(latents, torch.tensor([1, 2, 3]))
    assert same(History.from_window(window).append(target).window(), following)


def test_low_precision_chunks_lose_nothing():
    chunk = clip(1).bfloat16()
    window = History.empty(2, 3, 2, 4).append(chunk).window()
    assert window.frames.dtype == torch.float32
    assert torch.equal(window.frames[:, :, -9:].bfloat16(), chunk)


def test_a_saved_history_continues():
    history = History.empty(2, 3, 2, 4).append(clip(1, seed=1))
    restored = History.from_state(history.state_dict())
    chunk = clip(1, seed=2)
    assert same(restored.append(chunk).window(), history.append(chunk).window())
    with pytest.raises(ValueError, match="present"):
        History.from_state({"frames": history.window().frames})


def test_history_moves_between_dtypes():
    history = History.empty(1, 3, 2, 4).to(dtype=torch.bfloat16)
    assert history.append(clip(1, 1)).window().frames.dtype == torch.bfloat16


def test_shapes_are_checked():
    history = History.empty(2, 3, 2, 4)
    with pytest.raises(ValueError, match="chunk"):
        history.append(clip(1, batch=1))
    with pytest.raises(ValueError, match="chunk"):
        history.append(clip(1)[0])
    with pytest.raises(ValueError, match="anchor"):
        History.from_video(clip(1), clip(1))
    with pytest.raises(ValueError, match="frame"):
        history.moved_anchor(clip(1))
