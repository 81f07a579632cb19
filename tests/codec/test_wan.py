from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helios.codec import AutoencoderConfig, WanAutoencoder
from helios.codec.wan import CausalConv3d

from .frame_by_frame import FrameByFrame
from .pairs import TINY, draw_config, make_pair

SEEDS = range(14)


def assert_equal_to(value: Tensor, reference: Tensor) -> None:
    """Within 1e-5 of the reference's largest value (or of 1)."""
    assert value.shape == reference.shape
    assert (value - reference).abs().max() <= 1e-5 * max(1.0, float(reference.abs().max()))


def clip(
    config: AutoencoderConfig, groups: int, seed: int, cells: tuple[int, int] = (5, 3)
) -> Tensor:
    """Random frames, ``4 * groups`` and one, over an odd grid of latent cells."""
    generator = torch.Generator().manual_seed(seed)
    size = [config.spatial_ratio * n for n in cells]
    return torch.rand(2, 3, 1 + 4 * groups, *size, generator=generator) * 2 - 1


def latents(config: AutoencoderConfig, frames: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, config.z_dim, frames, 3, 5, generator=generator)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_parity_with_diffusers(seed: int) -> None:
    config = draw_config(seed)
    ours, theirs = make_pair(config, seed)
    frames = clip(config, 1 + seed % 3, seed)
    expected = theirs.encode(frames).latent_dist
    mean, logvar = ours.posterior(frames)
    assert_equal_to(mean, expected.mean)
    assert_equal_to(logvar, expected.logvar)
    z = latents(config, 2 + seed % 3, seed)
    assert_equal_to(ours.decode(z).clamp(-1, 1), theirs.decode(z).sample)


@torch.no_grad()
def test_parity_on_a_whole_chunk() -> None:
    ours, theirs = make_pair(TINY)
    frames = clip(TINY, 8, 0)
    assert_equal_to(ours.posterior(frames)[0], theirs.encode(frames).latent_dist.mean)
    z = latents(TINY, 9, 0)
    assert ours.decode(z).shape == (2, 3, 33, 24, 40)
    assert_equal_to(ours.decode(z).clamp(-1, 1), theirs.decode(z).sample)


@torch.no_grad()
def test_image_parity() -> None:
    ours, theirs = make_pair(TINY)
    image = clip(TINY, 0, 1)
    mean, _ = ours.posterior(image)
    assert mean.shape == (2, 16, 1, 5, 3)
    assert_equal_to(mean, theirs.encode(image).latent_dist.mean)
    assert_equal_to(ours.decode(mean).clamp(-1, 1), theirs.decode(mean).sample)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_one_pass_equals_frame_by_frame(seed: int) -> None:
    config = draw_config(seed)
    ours, _ = make_pair(config, seed)
    z = latents(config, 3, seed)
    assert_equal_to(ours.decode(z), FrameByFrame(ours).decode(z))
    exact, z = ours.double(), z[:1].double()
    torch.testing.assert_close(
        exact.decode(z), FrameByFrame(exact).decode(z), rtol=1e-11, atol=1e-11
    )


@torch.no_grad()
def test_one_pass_equals_frame_by_frame_on_a_chunk() -> None:
    for config in (TINY, replace(TINY, is_residual=True)):
        ours, _ = make_pair(config)
        z = latents(config, 9, 0)
        assert_equal_to(ours.decode(z), FrameByFrame(ours).decode(z))


@torch.no_grad()
def test_nothing_looks_ahead() -> None:
    ours, _ = make_pair(TINY)
    z, frames = latents(TINY, 5, 0), clip(TINY, 4, 0)
    assert_equal_to(ours.decode(z[:, :, :3]), ours.decode(z)[:, :, :9])
    assert_equal_to(ours.posterior(frames[:, :, :9])[0], ours.posterior(frames)[0][:, :, :3])


@torch.no_grad()
def test_decoding_keeps_no_memory() -> None:
    ours, _ = make_pair(TINY)
    first, second = latents(TINY, 3, 0), latents(TINY, 9, 1)
    alone = ours.decode(first)
    ours.decode(second)
    ours.posterior(clip(TINY, 1, 0))
    assert torch.equal(ours.decode(first), alone)


@pytest.mark.parametrize("halvings", [(True, True, True), (False, False), ()])
@torch.no_grad()
def test_any_number_of_halvings(halvings: tuple[bool, ...]) -> None:
    config = AutoencoderConfig(
        base_dim=4,
        dim_mult=(1,) * (len(halvings) + 1),
        num_res_blocks=1,
        temperal_downsample=halvings,
        scale_factor_temporal=2 ** sum(halvings),
        scale_factor_spatial=2 ** len(halvings),
    )
    ours = WanAutoencoder(config).double()
    frames = clip(config, 2 ** max(0, sum(halvings) - 2), 0).double()
    out = ours(frames)
    assert out.frames.shape == frames.shape
    assert_equal_to(ours.decode(out.mean), FrameByFrame(ours).decode(out.mean))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 5, 16), "frames must be"),
        ((1, 4, 5, 16, 16), "frames must be"),
        ((1, 3, 4, 16, 16), "number of frames must be 1"),
        ((1, 3, 5, 16, 20), "multiples of 8, got 16 and 20"),
        ((1, 3, 5, 0, 16), "frames must be"),
    ],
)
def test_wrong_frames_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WanAutoencoder(TINY).posterior(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(16, 2, 3, 5), (1, 15, 2, 3, 5), (1, 16, 0, 3, 5)])
def test_wrong_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="latents must be"):
        WanAutoencoder(TINY).decode(torch.zeros(shape))


def test_widths_that_cannot_be_averaged_are_refused() -> None:
    bad = replace(TINY, base_dim=8, dim_mult=(1, 2, 3), is_residual=True)
    with pytest.raises(ValueError, match="is_residual cannot"):
        WanAutoencoder(bad)


def test_layouts_do_not_change_values() -> None:
    ours, _ = make_pair(TINY)
    for parameter in ours.parameters():
        if parameter.ndim == 5:
            assert parameter.is_contiguous(memory_format=torch.channels_last_3d)
    frames = clip(TINY, 1, 0)
    with torch.no_grad():
        before = ours.posterior(frames)[0]
        after = ours.posterior(frames.contiguous(memory_format=torch.channels_last_3d))[0]
        for parameter in ours.parameters():
            parameter.data = parameter.data.contiguous()
        plain = ours.posterior(frames)[0]
    assert torch.equal(before, after)
    assert_equal_to(plain, before)


def test_gradients_equal_diffusers() -> None:
    ours, theirs = make_pair(replace(TINY, is_residual=True))
    frames = clip(TINY, 1, 0, cells=(2, 3))
    noise = torch.randn(2, 16, 2, 2, 3, generator=torch.Generator().manual_seed(0))

    out = ours(frames, noise)
    ((out.frames.clamp(-1, 1) - frames).square().mean() + out.logvar.mean()).backward()

    posterior = theirs.encode(frames).latent_dist
    decoded = theirs.decode(posterior.mean + posterior.std * noise).sample
    ((decoded - frames).square().mean() + posterior.logvar.mean()).backward()

    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        wanted = expected[name].grad
        if wanted is None:  # diffusers never runs it: time convolutions skipped by a short clip
            assert not parameter.grad.any(), name
            continue
        scale = max(1e-3, float(wanted.abs().max()))
        assert (parameter.grad - wanted).abs().max() <= 1e-4 * scale, name


def test_every_parameter_learns_under_autocast() -> None:
    ours = WanAutoencoder(TINY)
    frames = clip(TINY, 2, 0, cells=(2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(frames, torch.randn(2, 16, 3, 2, 3))
    assert out.frames.dtype == torch.bfloat16
    (out.frames.float() - frames).abs().mean().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_dropout_only_while_training() -> None:
    ours = WanAutoencoder(replace(TINY, dropout=0.5))
    z = latents(TINY, 1, 0)
    with torch.no_grad():
        assert not torch.equal(ours.train().decode(z), ours.decode(z))
        assert torch.equal(ours.eval().decode(z), ours.decode(z))


@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_fresh_weights_are_fit_to_train_from(residual: bool) -> None:
    torch.manual_seed(0)
    ours = WanAutoencoder(replace(TINY, base_dim=32, is_residual=residual))
    out = ours(clip(TINY, 2, 0))
    assert 0.3 < out.mean.std() < 3
    assert 0.3 < out.frames.std() < 3
    torch.testing.assert_close(out.logvar, torch.full_like(out.logvar, -4.0), rtol=0, atol=0.2)
    for name, parameter in ours.named_parameters():
        norm_gain = name.endswith("gamma")
        assert torch.equal(parameter, torch.ones_like(parameter)) == norm_gain, name
    first = ours.state_dict()["decoder.conv_in.weight"].clone()
    ours.reset_parameters()
    assert not torch.equal(ours.state_dict()["decoder.conv_in.weight"], first)


@torch.no_grad()
def test_frame_rates_start_by_copying() -> None:
    torch.manual_seed(0)
    ours = WanAutoencoder(replace(TINY, base_dim=32))
    x = torch.randn(1, 64, 9, 4, 4)
    up, down = (
        next(m.time_conv for m in part.modules() if getattr(m, "time_conv", None) is not None)
        for part in (ours.decoder, ours.encoder)
    )
    doubled = up(x).unflatten(1, (2, 64))
    assert (doubled - x[:, None]).square().mean() < 0.2
    x = x[:, : down.in_channels]
    averaged = (x[:, :, 1::2] + x[:, :, 2::2]) / 2
    assert (down(x) - averaged).square().mean() < 0.2


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), 1), ((1, 1, 1), 1), ((3, 1, 1), 2)])
def test_without_gradients_a_small_picture_gives_the_same(kernel, stride) -> None:
    layer = CausalConv3d(6, 10, kernel, stride)
    x = torch.randn(1, 6, 7, 5, 9, generator=torch.Generator().manual_seed(3))
    with_gradients = layer(x)
    assert with_gradients.requires_grad
    with torch.no_grad():
        assert_equal_to(layer(x), with_gradients.detach())
        assert_equal_to(layer(x.mT.contiguous().mT), with_gradients.detach())
