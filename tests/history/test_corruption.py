import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.history import (
    CorruptionConfig,
    DropConfig,
    History,
    HistoryWindow,
    corrupt,
    cut_window,
    drop_history,
    start_noise,
)

NOTHING = {"noise": 0.0, "scale": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def full(batch, channels=4, rows=4, columns=6, seed=0):
    frames = torch.randn(batch, channels, 20, rows, columns, generator=generator(seed))
    return HistoryWindow(frames, torch.ones(batch, 20, dtype=torch.bool))


def touched(before, after):
    """``[B, 20]``: which frames changed."""
    return (before.frames != after.frames).flatten(3).any(3).any(1)


def within(share, expected, n, sigmas=3):
    return abs(share - expected) <= sigmas * math.sqrt(expected * (1 - expected) / n) + 1e-12


class TestDrop:
    @pytest.mark.parametrize(
        "config",
        [
            DropConfig(),
            DropConfig(all=0.4, i2v=0.0, v2v=0.4),
            DropConfig(all=0.4, i2v=0.0, v2v=0.5),
        ],
    )
    def test_shares(self, config):
        n = 100_000
        window = full(1, 1, 1, 1)
        frames = window.frames.expand(n, -1, -1, -1, -1)
        present = window.present.expand(n, -1)
        dropped = drop_history(HistoryWindow(frames, present), config, generator())
        there = dropped.present
        count = there.sum(1)
        everything, image, video = config.shares
        assert within((count == 0).float().mean().item(), everything, n)
        only_newest = (count == 2) & there[:, 0] & there[:, 19]
        assert within(only_newest.float().mean().item(), image, n)
        for kept in (18, 9, 0):
            share = (there[:, 0] & (count == 1 + kept)).float().mean().item()
            assert within(share, video / 3, n)
        assert within((count == 20).float().mean().item(), 1 - everything - image - video, n)

    def test_published_shares(self):
        assert DropConfig(all=0.4, i2v=0.0, v2v=0.4).shares == pytest.approx((0.4, 0.0, 0.24))
        assert DropConfig(all=0.4, i2v=0.0, v2v=0.5).shares == pytest.approx((0.4, 0.0, 0.3))

    def test_samples_are_independent(self):
        """Neighbours in a batch agree as often as chance has it."""
        n = 100_000
        window = HistoryWindow(torch.ones(n, 1, 20, 1, 1), torch.ones(n, 20, dtype=torch.bool))
        config = DropConfig(all=0.5, i2v=0.0, v2v=0.0)
        gone = ~drop_history(window, config, generator()).present[:, 0]
        both = (gone[::2] & gone[1::2]).float().mean().item()
        assert within(both, 0.25, n / 2)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10_000), k=st.lists(st.integers(0, 4), min_size=8, max_size=8))
    def test_dropping_only_takes_away(self, seed, k):
        latents = torch.randn(8, 2, 45, 2, 2, generator=generator(seed))
        window, _ = cut_window(latents, torch.tensor(k))
        dropped = drop_history(window, DropConfig(all=0.2, i2v=0.3, v2v=0.6), generator(seed))
        assert not (dropped.present & ~window.present).any()
        mask = dropped.present[:, None, :, None, None]
        assert torch.equal(dropped.frames, torch.where(mask, window.frames, 0.0))
        # What is dropped of the past is always its oldest part.
        lost = window.present[:, 1:] & ~dropped.present[:, 1:]
        kept = dropped.present[:, 1:].int()
        first_kept = torch.where(kept.any(1), kept.argmax(1), 19)
        assert (lost.int().cumsum(1)[:, -1] <= first_kept).all()

    def test_nothing_and_everything(self):
        window = full(6)
        kept = drop_history(window, DropConfig(all=0.0, i2v=0.0, v2v=0.0), generator())
        assert torch.equal(kept.frames, window.frames)
        gone = drop_history(window, DropConfig(all=1.0), generator())
        assert not gone.frames.any()
        assert not gone.present.any()
        image = drop_history(window, DropConfig(all=0.0, i2v=1.0), generator())
        assert torch.equal(image.short, window.short)
        assert not image.frames[:, :, 1:-1].any()

    @pytest.mark.parametrize("fields", [{"all": -0.1}, {"i2v": 1.1}, {"v2v": float("nan")}])
    def test_probabilities_are_checked(self, fields):
        with pytest.raises(ValueError, match=next(iter(fields))):
            DropConfig(**fields)


def classify(before, after):
    """``[B, 20]`` names of the damage, told from the latents alone."""
    z, y = before.frames.double(), after.frames.double()
    flat_z, flat_y = (x.transpose(1, 2).flatten(2) for x in (z, y))
    clean = (flat_z == flat_y).all(2)
    factor = (flat_z * flat_y).sum(2) / (flat_z**2).sum(2)
    scale = (flat_y - factor[..., None] * flat_z).abs().amax(2) < 1e-4
    mean = z.mean(1, keepdim=True)
    centred_z, centred_y = ((x - mean).transpose(1, 2).flatten(2) for x in (z, y))
    factor = (centred_z * centred_y).sum(2) / (centred_z**2).sum(2)
    saturation = (centred_y - factor[..., None] * centred_z).abs().amax(2) < 1e-4
    return clean, scale & ~clean, saturation & ~clean & ~scale


class TestCorruption:
    CONFIG = CorruptionConfig(noise=0.4, down_up=0.1, saturation=0.15, scale=0.2)

    def test_frequencies(self):
        batch = 1000
        before = full(batch)
        after = corrupt(before, self.CONFIG, generator())
        clean, scale, saturation = classify(before, after)
        n = batch * 20
        assert within(saturation.float().mean().item(), 0.15, n)
        assert within(scale.float().mean().item(), 0.20, n)
        # Shrinking 4 x 6 cells by at most a tenth often leaves the size as it is.
        blur = CorruptionConfig(**NOTHING, down_up=1.0)
        visible = touched(before, corrupt(before, blur, generator(1))).float().mean().item()
        unseen = 0.1 * (1 - visible)
        assert within(clean.float().mean().item(), 0.15 + unseen, n, sigmas=4)

    @pytest.mark.parametrize("kind", ["noise", "down_up", "exposure", "saturation", "scale"])
    def test_each_kind_alone_has_its_frequency(self, kind):
        ranges = {"down_up": (0.3, 0.3)}
        fields = {**NOTHING, kind: 0.3}
        if kind in ranges:
            fields[f"{kind}_range"] = ranges[kind]
        before = full(1000)
        after = corrupt(before, CorruptionConfig(**fields), generator())
        assert within(touched(before, after).float().mean().item(), 0.3, 20_000)

    def test_frames_are_independent(self):
        before = full(4000, 1, 2, 2)
        hit = touched(before, corrupt(before, CorruptionConfig(noise=0.5, scale=0.0), generator()))
        pairs = (hit[:, :-1] & hit[:, 1:]).float().mean().item()
        assert within(pairs, 0.25, 4000 * 19 / 3)  # overlapping pairs count for less
        first, last = hit[:-1].float(), hit[1:].float()
        assert within((first * last).mean().item(), 0.25, 4000 * 20 / 3)

    def test_variance_of_the_noise(self):
        """``(1 - s) z + s n`` with ``s`` fixed, and its mean square over the whole range."""
        before = full(200, 4, 8, 8)
        for low, high in ((0.2, 0.2), (0.0, 1 / 3)):
            config = CorruptionConfig(noise=1.0, noise_range=(low, high), scale=0.0)
            after = corrupt(before, config, generator())
            change = (after.frames - before.frames).pow(2).mean().item()
            square = (low**2 + low * high + high**2) / 3  # of a uniform level
            assert change == pytest.approx(2 * square, rel=0.03)  # n - z has variance 2

    def test_noise_levels_of_frames_are_uniform(self):
        before = HistoryWindow(torch.zeros(500, 4, 20, 8, 8), torch.ones(500, 20).bool())
        after = corrupt(before, CorruptionConfig(noise=1.0, scale=0.0), generator())
        level = after.frames.pow(2).mean((1, 3, 4)).sqrt()
        assert level.max() < 0.37
        assert level.mean().item() == pytest.approx(1 / 6, abs=3 / 3 / math.sqrt(12 * 10_000))
        assert level.var().item() == pytest.approx(1 / 108, rel=0.05)

    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        granularity=st.sampled_from(["frame", "chunk", "clip"]),
        k=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    )
    def test_absent_frames_are_untouched(self, seed, granularity, k):
        latents = torch.randn(4, 3, 36, 4, 4, generator=generator(seed))
        window, _ = cut_window(latents, torch.tensor(k))
        config = CorruptionConfig(
            noise=0.3,
            down_up=0.1,
            exposure=0.2,
            exposure_pivot=(1.0, -1.0, 0.5),
            saturation=0.2,
            scale=0.2,
            granularity=granularity,
        )
        after = corrupt(window, config, generator(seed))
        assert torch.equal(after.present, window.present)
        assert not after.frames.transpose(1, 2)[~window.present].any()

    def test_the_anchor_may_be_spared(self):
        before = full(50)
        config = CorruptionConfig(noise=1.0, scale=0.0, corrupt_anchor=False)
        hit = touched(before, corrupt(before, config, generator()))
        assert not hit[:, 0].any()
        assert hit[:, 1:].all()
        taking_part = CorruptionConfig(noise=1.0, scale=0.0)
        assert touched(before, corrupt(before, taking_part, generator())).all()

    @pytest.mark.parametrize(
        ("granularity", "groups"),
        [
            ("frame", [[i] for i in range(20)]),
            ("chunk", [[0], [1], list(range(2, 11)), list(range(11, 20))]),
            ("clip", [list(range(20))]),
        ],
    )
    def test_granularity(self, granularity, groups):
        """Frames of a group share kind and strength; different groups do not."""
        before = full(400)
        config = CorruptionConfig(noise=0.0, scale=0.6, granularity=granularity)
        after = corrupt(before, config, generator())
        factor = (before.frames * after.frames).sum((1, 3, 4)) / before.frames.pow(2).sum((1, 3, 4))
        for group in groups:
            spread = factor[:, group].amax(1) - factor[:, group].amin(1)
            assert spread.max() < 1e-5
        leaders = factor[:, [group[0] for group in groups]]
        for i in range(len(groups) - 1):
            agree = (leaders[:, i] - leaders[:, i + 1]).abs() < 1e-5
            assert within(agree.float().mean().item(), 0.4**2, 400, sigmas=4)

    def test_noise_differs_within_a_group(self):
        before = full(3)
        config = CorruptionConfig(noise=1.0, noise_range=(0.3, 0.3), scale=0.0, granularity="clip")
        added = corrupt(before, config, generator()).frames - 0.7 * before.frames
        assert not torch.allclose(added[:, :, 3], added[:, :, 4], atol=0.05)
        assert not torch.allclose(added[0], added[1], atol=0.05)

    @pytest.mark.parametrize(("rows", "columns"), [(16, 24), (7, 10)])
    def test_down_up_is_resizing(self, rows, columns):
        before = full(2, 3, rows, columns)
        share = 0.25
        config = CorruptionConfig(**NOTHING, down_up=1.0, down_up_range=(share, share))
        after = corrupt(before, config, generator())
        maps = before.frames.transpose(1, 2).flatten(0, 1)
        small = (round(rows * (1 - share)), round(columns * (1 - share)))
        down = F.interpolate(maps, size=small, mode="bilinear", antialias=True)
        up = F.interpolate(down, size=(rows, columns), mode="bilinear", antialias=True)
        expected = up.unflatten(0, (2, 20)).transpose(1, 2)
        torch.testing.assert_close(after.frames, expected, rtol=0, atol=1e-5)

    def test_down_up_picks_a_size_per_frame(self):
        before = full(64, 2, 16, 24)
        config = CorruptionConfig(**NOTHING, down_up=1.0, down_up_range=(0.0, 0.4))
        lost = (corrupt(before, config, generator()).frames - before.frames).pow(2)
        lost = lost.mean((1, 3, 4))
        assert lost.std(1).min() > 0.01

    def test_exposure_about_black(self):
        """With an affine codec, scaling about black's latent is scaling of the picture."""
        weights, bias = torch.randn(4, generator=generator(1)), torch.tensor([0.5, -1.0, 2.0, 0.1])
        picture = torch.rand(1, 1, 20, 4, 4, generator=generator(2))

        def encode(pixels):
            return weights.view(1, 4, 1, 1, 1) * pixels + bias.view(1, 4, 1, 1, 1)

        window = HistoryWindow(encode(picture), torch.ones(1, 20, dtype=torch.bool))
        config = CorruptionConfig(
            **NOTHING,
            exposure=1.0,
            exposure_range=(0.5, 0.5),
            exposure_pivot=tuple(bias.tolist()),
        )
        after = corrupt(window, config, generator())
        torch.testing.assert_close(after.frames, encode(picture * 0.5))

    def test_saturation_keeps_the_mean_over_channels(self):
        before = full(4)
        config = CorruptionConfig(**NOTHING, saturation=1.0, saturation_range=(0.5, 0.5))
        after = corrupt(before, config, generator())
        mean = before.frames.mean(1, keepdim=True)
        torch.testing.assert_close(after.frames.mean(1, keepdim=True), mean, rtol=0, atol=1e-6)
        expected = mean + 0.5 * (before.frames - mean)
        torch.testing.assert_close(after.frames, expected)

    def test_scale_stays_in_its_range(self):
        before = full(100)
        after = corrupt(before, CorruptionConfig(noise=0.0, scale=1.0), generator())
        factor = (after.frames / before.frames).double()
        assert factor.min() >= 0.6 - 1e-5
        assert factor.max() <= 1.4 + 1e-5
        per_frame = factor.mean((1, 3, 4))
        assert per_frame.mean().item() == pytest.approx(1.0, abs=3 * 0.8 / math.sqrt(12 * 2000))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_dtype_and_repeatability(self, dtype):
        window = full(8).to(dtype=dtype)
        first, again = (corrupt(window, self.CONFIG, generator(3)) for _ in range(2))
        assert first.frames.dtype == dtype
        assert torch.equal(first.frames, again.frames)
        assert not torch.equal(first.frames, corrupt(window, self.CONFIG, generator(4)).frames)

    def test_clean_is_clean(self):
        window = full(3)
        assert torch.equal(corrupt(window, CorruptionConfig(**NOTHING)).frames, window.frames)

    @pytest.mark.parametrize(
        "fields",
        [
            {"noise": -0.1},
            {"noise": 0.9, "scale": 0.2},
            {"noise_range": (0.5, 0.1)},
            {"noise_range": (0.0, 1.5)},
            {"down_up_range": (0.0, 1.0)},
            {"scale_range": (-1.0, 1.0)},
            {"granularity": "pixel"},
        ],
    )
    def test_configs_without_meaning(self, fields):
        with pytest.raises(ValueError):
            CorruptionConfig(**fields)


class TestStartNoise:
    LATENTS = torch.randn(2, 3, 9, 4, 4, generator=generator(9))

    @pytest.mark.parametrize("per_frame", [False, True])
    def test_draws_and_formula_of_the_published_pipelines(self, per_frame):
        low, high = 0.111, 0.135
        book, ours = generator(4), generator(4)
        if per_frame:
            sigma = torch.rand(9, generator=book) * (high - low) + low
            sigma = sigma.view(1, 1, 9, 1, 1)
        else:
            sigma = torch.rand(1, generator=book) * (high - low) + low
        noise = torch.randn(self.LATENTS.shape, generator=book)
        expected = sigma * noise + (1 - sigma) * self.LATENTS
        found = start_noise(self.LATENTS, low, high, ours, per_frame=per_frame)
        assert torch.equal(found, expected)
        assert torch.equal(ours.get_state(), book.get_state())

    def test_no_noise_is_the_latent_itself(self):
        assert torch.equal(start_noise(self.LATENTS, 0.0, 0.0, generator()), self.LATENTS)

    @pytest.mark.parametrize("pair", [(-0.1, 0.2), (0.3, 0.2), (0.5, 1.2)])
    def test_levels_are_checked(self, pair):
        with pytest.raises(ValueError, match="noise"):
            start_noise(self.LATENTS, *pair)


def test_nothing_is_read_back_from_the_device():
    """On the meta device there are no values, so reading one is an error."""
    latents = torch.empty(4, 3, 36, 8, 8, device="meta")
    window, target = cut_window(latents, torch.zeros(4, dtype=torch.int64, device="meta"))
    dropped = drop_history(window, DropConfig())
    for granularity in ("frame", "chunk", "clip"):
        config = CorruptionConfig(
            noise=0.2,
            down_up=0.2,
            exposure=0.2,
            exposure_pivot=(0.1, 0.2, 0.3),
            saturation=0.2,
            scale=0.2,
            granularity=granularity,
            corrupt_anchor=False,
        )
        after = corrupt(dropped, config)
    history = History.from_window(after).append(target)
    noised = start_noise(history.window().anchor, 0.1, 0.2)
    assert noised.shape == (4, 3, 1, 8, 8)
