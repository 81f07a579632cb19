"""Switches that take a remedy against drift away, where training and sampling both read it."""

from dataclasses import replace

import pytest
import torch

from helios.history import History
from helios.model import (
    TransformerConfig,
    forward_noisy,
    forward_recorded,
    load_transformer,
    save_transformer,
)
from helios.model.config import OUR_OPTIONS

from .cases import build, inputs, small


@torch.no_grad()
def answer(model, window, seed=0):
    x, timestep, text, _ = inputs(model.config, batch=2, size=(4, 6), seed=seed)
    return model(x, timestep, text, window)


def window_of(*elapsed):
    _, _, _, window = inputs(small(), batch=len(elapsed), size=(4, 6))
    return replace(window, elapsed=torch.tensor(elapsed))


@pytest.mark.parametrize("option", OUR_OPTIONS)
def test_a_saved_model_keeps_its_switches(tmp_path, option):
    model = build(**{option: True})
    save_transformer(model, tmp_path)
    assert f'"{option}": true' in (tmp_path / "config.json").read_text()
    assert load_transformer(tmp_path).config == model.config
    assert option not in TransformerConfig().to_json()


def test_without_anchor_the_first_frame_is_not_seen():
    plain, without = build(), build(without_anchor=True)
    window = window_of(45, 45)
    other = replace(window, frames=window.frames.clone())
    other.frames[:, :, 0] += 1
    assert not torch.allclose(answer(plain, window), answer(plain, other), atol=1e-3)
    assert torch.equal(answer(without, window), answer(without, other))
    assert torch.equal(answer(without, window), answer(plain, window.without_anchor()))


def test_absolute_positions_begin_as_relative_ones():
    plain, absolute = build(), build(absolute_positions=True)
    torch.testing.assert_close(
        answer(absolute, window_of(0, 0)), answer(plain, window_of(0, 0)), rtol=0, atol=1e-6
    )


def test_absolute_positions_grow_with_the_video_sample_by_sample():
    absolute = build(absolute_positions=True)
    both = answer(absolute, window_of(9, 396))
    early, late = answer(absolute, window_of(9, 9)), answer(absolute, window_of(396, 396))
    torch.testing.assert_close(both[0], early[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(both[1], late[1], rtol=0, atol=1e-6)
    assert not torch.allclose(early, late, atol=1e-4)
    plain = build()
    assert torch.equal(answer(plain, window_of(9, 9)), answer(plain, window_of(396, 396)))


def test_moving_every_frame_but_the_anchor_is_moving_the_anchor_back(monkeypatch):
    """Absolute positions as they are said, against the form in which they are computed."""
    import helios.model.rope as rope

    absolute, elapsed = build(absolute_positions=True), 27
    expected = answer(absolute, window_of(elapsed, elapsed))

    def later(positions):
        return tuple(place + elapsed for place in positions)

    for name in ("LONG_POSITIONS", "MID_POSITIONS", "CHUNK_POSITIONS"):
        monkeypatch.setattr(rope, name, later(getattr(rope, name)))
    monkeypatch.setattr(rope, "SHORT_POSITIONS", (0, rope.SHORT_POSITIONS[1] + elapsed))
    rope._tables.cache_clear()
    said = answer(build(), window_of(0, 0))
    monkeypatch.undo()
    rope._tables.cache_clear()
    torch.testing.assert_close(expected, said, rtol=0, atol=2e-5)


def test_absolute_positions_want_to_know_the_time():
    with pytest.raises(ValueError, match="elapsed"):
        answer(build(absolute_positions=True), replace(window_of(0, 0), elapsed=None))


def test_streaming_and_training_tell_the_same_time():
    history = History.empty(2, 16, 4, 6)
    for chunk in range(3):
        assert history.window().elapsed.tolist() == [9 * chunk] * 2
        history = history.append(torch.zeros(2, 16, 9, 4, 6))


def test_aligned_scales_put_coarse_tokens_at_the_middle_of_what_they_cover():
    plain, aligned = build(), build(aligned_scales=True)
    coarse = inputs(plain.config, batch=2, size=(2, 4), history=(4, 8))
    fine = inputs(plain.config, batch=2, size=(4, 8))
    with torch.no_grad():
        assert torch.equal(plain(*fine), aligned(*fine))
        assert not torch.allclose(plain(*coarse), aligned(*coarse), atol=1e-4)
        # A crop at the corner is no coarse scale.
        assert torch.equal(plain(*coarse, origin=(0, 0)), aligned(*coarse, origin=(0, 0)))
    window = replace(window_of(0, 0), frames=torch.zeros(2, 16, 20, 8, 12))
    cos, sin = aligned.rotation((9, 2, 3), window)
    # The last noisy token: frame 28, row 1 and column 2 of a grid half as fine as history's.
    angles = torch.tensor([28.0, 2 * 1 + 0.5, 2 * 2 + 0.5])[:, None] * torch.tensor([1.0, 0.01])
    torch.testing.assert_close(cos[-1], angles.flatten().cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[-1], angles.flatten().sin(), rtol=0, atol=1e-5)


def test_kept_history_has_its_absolute_place():
    """With restricted attention the history of one step serves every other, exactly."""
    model = build(absolute_positions=True, restrict_self_attn=True)
    window = window_of(18, 45)
    x, timestep, text, _ = inputs(model.config, batch=2, size=(4, 6), seed=1)
    with torch.no_grad():
        rows, words = model.modulate(timestep), model.read(text)
        _, memory = forward_recorded(model, torch.zeros_like(x), rows, words, window)
        found = forward_noisy(model, x, rows, words, window, memory)
        torch.testing.assert_close(found, model(x, timestep, text, window), rtol=0, atol=1e-5)
