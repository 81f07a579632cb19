import pytest
import torch

from helios.history import CorruptionConfig, DropConfig, cut_window
from helios.training.examples import cut_example, drop_captions, pick_sections

UNTOUCHED = {
    "drop": DropConfig(all=0.0, i2v=0.0, v2v=0.0),
    "corruption": CorruptionConfig(noise=0.0, scale=0.0),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shares_of_sections():
    section = pick_sections(40_000, 4, 0.3, generator())
    shares = torch.bincount(section).double() / len(section)
    expected = torch.tensor([0.3, *[0.7 / 3] * 3]).double()
    assert (shares - expected).abs().max() < 0.01
    assert not pick_sections(9, 1, 0.3, generator()).any()


def test_shares_of_captions():
    tokens, empty = torch.full((4000, 48), 5), torch.tensor([1] + [0] * 47)
    dropped = (drop_captions(tokens, empty, 0.1, generator()) == empty).all(dim=1)
    assert abs(dropped.double().mean() - 0.1) < 0.02
    assert torch.equal(drop_captions(tokens, empty, 0.0, generator()), tokens)


def test_an_example_is_the_window_of_its_section():
    latents = torch.randn(16, 3, 27, 2, 4, generator=generator(1)).half()
    example = cut_example(latents, first_share=0.5, generator=generator(2), **UNTOUCHED)
    window, clean = cut_window(latents.float(), example.section)
    assert set(example.section.tolist()) == {0, 1, 2}
    assert torch.equal(example.clean, clean)
    assert torch.equal(example.window.frames, window.frames)
    assert torch.equal(example.window.present, window.present)


def test_the_past_is_shortened_before_it_is_damaged():
    """What is dropped stays zero, whatever damage the configuration asks for."""
    latents = torch.randn(64, 3, 27, 2, 4, generator=generator(1))
    config = {
        "drop": DropConfig(all=0.2, i2v=0.3, v2v=0.5),
        "corruption": CorruptionConfig(noise=1.0, scale=0.0),
    }
    example = cut_example(latents, first_share=0.0, generator=generator(2), **config)
    frames, present = example.window.frames.transpose(1, 2), example.window.present
    assert not frames[~present].any()
    whole, _ = cut_window(latents, example.section)
    kept = (frames == whole.frames.transpose(1, 2)).flatten(2).all(2)
    assert not (kept & present).any()
    assert (present.sum(1) < whole.present.sum(1)).any()


@pytest.mark.parametrize(
    "kind",
    [
        {"noise": 1.0, "noise_range": (0.2, 0.3), "scale": 0.0},
        {"down_up": 1.0, "down_up_range": (0.5, 0.6), "noise": 0.0, "scale": 0.0},
        {"exposure": 1.0, "noise": 0.0, "scale": 0.0, "exposure_range": (0.3, 0.6)},
        {"saturation": 1.0, "noise": 0.0, "scale": 0.0, "saturation_range": (0.3, 0.6)},
    ],
)
def test_every_kind_of_damage_reaches_the_past_of_every_stage(kind):
    """None does nothing, nor fails on several frames (training.md, 11, F7 and F8)."""
    latents = torch.randn(4, 16, 36, 8, 8, generator=generator())
    cut = {"first_share": 0.0, "drop": UNTOUCHED["drop"]}
    clean = cut_example(latents, **cut, corruption=UNTOUCHED["corruption"], generator=generator(1))
    corruption = CorruptionConfig(**kind)
    damaged = cut_example(latents, **cut, corruption=corruption, generator=generator(1))
    assert torch.equal(damaged.clean, clean.clean)
    present = clean.window.present
    difference = (damaged.window.frames - clean.window.frames).abs().amax(dim=(1, 3, 4))
    assert (difference[~present] == 0).all()
    assert (difference[present] > 0).all()
