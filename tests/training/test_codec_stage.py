import json
import math
from dataclasses import replace

import pytest
import torch

from helios.codec import load_codec
from helios.data import SceneFrames, to_frames
from helios.errors import CheckpointError
from helios.training import OptimizerConfig, train
from helios.training.codec_stage import CodecStageConfig, measure_psnr, moving, reconstruction_loss

from .small import RING, codec_config
from .toys import alone


def tensors(path):
    from safetensors.torch import load_file

    return load_file(path / "shared.safetensors"), load_file(path / "rank-00000.safetensors")


def same(one, other):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_resumed_equals_uninterrupted_bit_for_bit_and_the_result_is_whole(tmp_path):
    report = train(codec_config(), tmp_path / "a", device="cpu")
    middle = tmp_path / "a/checkpoints/step-00000003"
    train(codec_config(), tmp_path / "b", device="cpu", resume=str(middle))
    ends = [tensors(tmp_path / run / "checkpoints/step-00000006") for run in "ab"]
    assert same(*ends)

    assert report["psnr_worst"] <= report["psnr"] < 30
    assert (tmp_path / "a/samples/final/reconstruction.png").read_bytes()[:4] == b"\x89PNG"
    codec = load_codec(tmp_path / "a/model/vae")
    clip = SceneFrames(RING, torch.device("cpu"), seed=0).group(0)
    latents = codec.encode(to_frames(clip))
    assert latents.shape == (2, 16, 9, 4, 6)
    # The statistics were measured on these very clips, before the weights were rounded.
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.02
    with torch.no_grad():
        _, logvar = codec.network.posterior(to_frames(clip))
    own = logvar.exp().mean((0, 2, 3, 4)) / torch.tensor(codec.config.latents_std).square()
    spread = latents.var(dim=(0, 2, 3, 4), correction=0) + own
    assert (spread - 1).abs().max() < 0.02
    assert own.min() > 0.02
    files = [tmp_path / f"{run}/model/vae/diffusion_pytorch_model.safetensors" for run in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_loss_falls(tmp_path):
    config = codec_config(
        steps=30, checkpoint_every=0, optimizer=OptimizerConfig(lr=1e-2, warmup_steps=3)
    )
    data = replace(RING, first_groups=1, groups=1, refresh_every=0)
    stage = replace(config.stage, data=data, short_share=1.0, validation_clips=0)
    train(replace(config, stage=stage), tmp_path, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_both_window_lengths_are_used():
    stage = codec_config().stage.build(alone(), seed=0, compiled=False)
    stage.prepare()
    assert stage.batch(0.0).frames.shape == (2, 3, 5, 32, 48)
    assert stage.batch(0.9).frames.shape == (1, 3, 33, 32, 48)
    assert len(stage.batch(0.9)) == 33


def test_the_loss_weighs_moving_pixels():
    frames = torch.zeros(1, 3, 4, 8, 8)
    frames[:, :, :, 2, 2] = torch.tensor([0.5, -0.5, 0.5, -0.5])
    assert moving(frames).sum() == 4
    zeros = torch.zeros(1, 16, 1, 1, 1)
    still, lively = frames.clone(), frames.clone()
    still[:, :, :, 5, 5] += 0.1
    lively[:, :, :, 2, 2] += 0.1
    terms = [reconstruction_loss(frames, made, zeros, zeros, 4.0) for made in (still, lively)]
    assert terms[1].absolute / terms[0].absolute == pytest.approx(4.0)
    assert terms[1].square / terms[0].square == pytest.approx(4.0)
    total = 4 * (63 + 4)
    assert float(terms[0].absolute) == pytest.approx(4 * 0.1 / total)
    assert float(terms[0].kl) == 0
    kl = reconstruction_loss(frames, frames, zeros + 2.0, zeros + 1.0, 4.0).kl
    assert float(kl) == pytest.approx(0.5 * (4 + math.e - 1 - 1))


def test_psnr_in_closed_form():
    original = torch.full((2, 3, 4, 4, 3), 100, dtype=torch.uint8)
    original[0, 1, 0, 0] = 200
    made = original.clone()
    made[0] += 10
    made[1] += 1
    result = measure_psnr(original, made)
    assert result.worst == pytest.approx(20 * math.log10(25.5), abs=1e-4)
    both = (20 * math.log10(25.5) + 20 * math.log10(255)) / 2
    assert result.mean == pytest.approx(both, abs=1e-4)
    assert result.moving == pytest.approx(20 * math.log10(25.5), abs=1e-4)


def test_going_on_from_a_given_autoencoder(random_codec):
    config = codec_config().stage
    given = replace(config, initial=random_codec).build(alone(), seed=5, compiled=False)
    saved = load_codec(random_codec / "vae").network.state_dict()
    assert all(torch.equal(saved[k], v) for k, v in given.model.state_dict().items())
    other = replace(
        config, initial=random_codec, autoencoder=replace(config.autoencoder, base_dim=16)
    )
    with pytest.raises(CheckpointError, match=r"another shape than stage\.autoencoder"):
        other.build(alone(), seed=0, compiled=False)


def test_noise_on_latents_follows_each_channel_and_stays_below_its_share():
    stage = replace(codec_config().stage, latent_noise=0.3).build(alone(), seed=0, compiled=False)
    scale = torch.tensor([0.5, 4.0]).view(1, 2, 1, 1, 1)
    latents = torch.randn(200, 2, 2, 8, 8) * scale
    share = stage._disturbance(latents).std(dim=(2, 3, 4)) / scale.flatten()
    assert share.max() < 0.36
    torch.testing.assert_close(share.mean(dim=0), torch.tensor([0.15, 0.15]), atol=0.02, rtol=0)


def test_the_scale_term_compares_half_sizes_and_reaches_both_halves_of_the_network():
    stage = replace(codec_config().stage, scale_weight=1.0).build(alone(), seed=0, compiled=False)
    stage.prepare()
    loss, scalars = stage.loss(stage.batch(0.0))
    assert {"absolute", "kl", "scale"} <= scalars.keys()
    scalars["scale"].backward()
    assert all(p.grad is not None for p in stage.model.parameters())
    plain = codec_config().stage.build(alone(), seed=0, compiled=False)
    plain.prepare()
    before, _ = plain.loss(plain.batch(0.0))
    torch.testing.assert_close(loss - scalars["scale"], before)


def test_a_silent_channel_is_not_blown_up():
    stage = codec_config().stage.build(alone(), seed=0, compiled=False)
    head, channels = stage.model.quant_conv, 16
    with torch.no_grad():
        head.weight[0] = 0
        head.bias[0] = 0
        head.weight[channels] = 0
        head.bias[channels] = 0  # mean 0, variance 1
    deviation = stage._with_statistics(stage.model).config.latents_std[0]
    assert deviation == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("bad", [{"short_frames": 6}, {"batch": 0}, {"kl_weight": -1.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CodecStageConfig(autoencoder=codec_config().stage.autoencoder, **bad)
