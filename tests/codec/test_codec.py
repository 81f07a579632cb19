import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from helios.codec import AutoencoderConfig, Codec, WanAutoencoder, load_codec, save_codec
from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError

from .pairs import TINY, draw_config, make_oracle, make_pair, perturb
from .test_wan import assert_equal_to, clip, latents

WEIGHTS = "diffusion_pytorch_model.safetensors"
STATED = replace(
    TINY,
    latents_mean=tuple(0.3 - 0.1 * i for i in range(16)),
    latents_std=tuple(0.4 + 0.1 * i for i in range(16)),
)


def columns(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


@torch.no_grad()
def test_latents_are_normalised_as_published() -> None:
    ours, theirs = make_pair(STATED)
    codec = Codec(ours)
    frames = clip(STATED, 2, 0)
    mean, reciprocal = columns(STATED.latents_mean), 1.0 / columns(STATED.latents_std)
    z = ours.posterior(frames)[0]
    assert torch.equal(codec.encode(frames), (z - mean) * reciprocal)
    x = latents(STATED, 3, 0)
    assert torch.equal(codec.decode(x), ours.decode(x / reciprocal + mean).clamp(-1, 1))
    assert_equal_to(codec.decode(x), theirs.decode(x / reciprocal + mean).sample)


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_sampled_latents_equal_diffusers(seed: int) -> None:
    config = draw_config(seed)
    ours, theirs = make_pair(config, seed)
    frames = clip(config, 1, seed, cells=(3, 2))
    drawn = theirs.encode(frames).latent_dist.sample(torch.Generator().manual_seed(seed))
    expected = (drawn - columns(config.latents_mean)) * (1.0 / columns(config.latents_std))
    codec = Codec(ours)
    sampled = codec.encode(frames, torch.Generator().manual_seed(seed))
    assert_equal_to(sampled, expected)
    assert not torch.equal(sampled, codec.encode(frames))


def test_successive_draws_continue_one_generator() -> None:
    """An image, then a clip: the order in which a start image is encoded."""
    ours, theirs = make_pair(STATED)
    codec = Codec(ours)
    ours_rng, theirs_rng = (torch.Generator().manual_seed(3) for _ in range(2))
    for frames in (clip(STATED, 0, 0), clip(STATED, 2, 1)):
        with torch.no_grad():
            drawn = theirs.encode(frames).latent_dist.sample(theirs_rng)
        expected = (drawn - columns(STATED.latents_mean)) * (1.0 / columns(STATED.latents_std))
        assert_equal_to(codec.encode(frames, ours_rng), expected)


def test_bytes_are_the_rounded_frames() -> None:
    codec = Codec(make_pair(STATED)[0])
    x = latents(STATED, 3, 0) * 3
    frames, levels = codec.decode(x), codec.decode_uint8(x)
    assert levels.dtype == torch.uint8
    assert levels.shape == (2, 9, 24, 40, 3)
    assert levels.is_contiguous()
    assert frames.abs().max() == 1.0
    expected = ((frames.double() * 0.5 + 0.5) * 255).movedim(1, -1)
    assert (levels.double() - expected).abs().max() <= 0.5 + 1e-4


def test_codec_leaves_no_graph_and_no_training_mode() -> None:
    codec = Codec(WanAutoencoder(replace(TINY, dropout=0.5)).train())
    x = latents(TINY, 2, 0)
    assert not codec.decode(x).requires_grad
    assert not codec.encode(clip(TINY, 1, 0)).requires_grad
    assert torch.equal(codec.decode(x), codec.decode(x))


def test_statistics_can_be_replaced() -> None:
    plain = Codec(make_pair(TINY)[0])
    frames = clip(TINY, 2, 0)
    other = plain.with_statistics([0.5] * 16, [2.0] * 16)
    assert other.network is plain.network
    assert plain.config == TINY
    z = plain.encode(frames) * columns(TINY.latents_std) + columns(TINY.latents_mean)
    torch.testing.assert_close(other.encode(frames), (z - 0.5) / 2)
    torch.testing.assert_close(
        other.decode(other.encode(frames)), plain.decode(plain.encode(frames))
    )
    with pytest.raises(ValueError, match="latents_std must be positive"):
        plain.with_statistics([0.0] * 16, [0.0] * 16)
    with pytest.raises(ValueError, match="latents_mean needs 16"):
        plain.with_statistics([0.0] * 3, [1.0] * 16)


def test_only_the_decoder_is_narrowed() -> None:
    codec = Codec(make_pair(TINY)[0])
    frames = clip(TINY, 2, 0)
    exact = codec.encode(frames)
    assert codec.to("cpu", torch.bfloat16) is codec
    assert codec.dtype == torch.bfloat16
    assert codec.device == torch.device("cpu")
    assert torch.equal(codec.encode(frames), exact)
    assert codec.decode(exact).dtype == torch.float32
    codec.to(encoder_dtype=torch.bfloat16)
    assert codec.encode(frames).dtype == torch.float32
    assert not torch.equal(codec.encode(frames), exact)


@pytest.mark.parametrize("residual", [False, True])
def test_bfloat16_decode_is_close(residual: bool) -> None:
    torch.manual_seed(0)
    config = replace(TINY, base_dim=16, is_residual=residual)
    network = WanAutoencoder(config)
    perturb(network, 0)
    x = torch.randn(1, 16, 9, 8, 12)
    exact = Codec(network).decode(x)
    error = Codec(network).to(dtype=torch.bfloat16).decode(x) - exact
    # Peak to peak is 2; the picture itself must not be flat for the figure to mean anything.
    assert exact.std() > 0.1
    assert 10 * torch.log10(4 / error.square().mean()) >= 50


def test_wrong_shapes_are_refused() -> None:
    codec = Codec(WanAutoencoder(TINY))
    with pytest.raises(ValueError, match="latents must be"):
        codec.decode(torch.zeros(1, 4, 9, 2, 2))
    with pytest.raises(ValueError, match="latents must be"):
        codec.decode_uint8(torch.zeros(16, 9, 2, 2))
    with pytest.raises(ValueError, match="number of frames"):
        codec.encode(torch.zeros(1, 3, 32, 16, 16))
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.encode(torch.zeros(1, 3, 33, 12, 16))


@pytest.mark.parametrize("seed", range(6))
def test_diffusers_loads_what_we_save(seed: int, tmp_path: Path) -> None:
    config = draw_config(seed)
    codec = Codec(make_pair(config, seed)[0])
    save_codec(codec, tmp_path / "vae")
    assert sorted(path.name for path in (tmp_path / "vae").iterdir()) == ["config.json", WEIGHTS]
    theirs, report = AutoencoderKLWan.from_pretrained(tmp_path / "vae", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    own = codec.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in theirs.state_dict().items())
    assert tuple(theirs.config.latents_mean) == config.latents_mean


@pytest.mark.parametrize("seed", range(6))
def test_we_load_what_diffusers_saves(seed: int, tmp_path: Path) -> None:
    config = draw_config(seed)
    theirs = make_oracle(config)
    perturb(theirs, seed)
    theirs.save_pretrained(tmp_path / "vae")
    codec = load_codec(tmp_path / "vae")
    assert codec.config == config
    assert codec.network.state_dict().keys() == theirs.state_dict().keys()
    x = latents(config, 2, seed)
    z = x / (1.0 / columns(config.latents_std)) + columns(config.latents_mean)
    with torch.no_grad():
        assert_equal_to(codec.decode(x), theirs.decode(z).sample)


def test_half_size_storage(tmp_path: Path) -> None:
    codec = Codec(make_pair(STATED)[0])
    save_codec(codec, tmp_path / "full")
    save_codec(codec, tmp_path / "half", torch.float16)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    again = load_codec(tmp_path / "half", dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16
    assert again.network.encoder.conv_in.weight.dtype == torch.float32
    assert codec.dtype == torch.float32
    stored = codec.network.encoder.conv_in.weight.half().float()
    assert torch.equal(again.network.encoder.conv_in.weight, stored)
    for parameter in again.network.parameters():
        if parameter.ndim == 5:
            assert parameter.is_contiguous(memory_format=torch.channels_last_3d)


def save_tiny(folder: Path) -> Path:
    save_codec(Codec(WanAutoencoder(TINY)), folder)
    return folder


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "vae")
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 7, 200, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(CheckpointCorruptError, match="damaged"):
            load_codec(folder)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "vae")
    (folder / WEIGHTS).unlink()
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (opened,)

    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        load_codec(folder)
    (folder / "diffusion_pytorch_model.bin").rename(folder / WEIGHTS)
    with pytest.raises(CheckpointCorruptError):
        load_codec(folder)
    assert not opened.exists()


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_codec(tmp_path)
    folder = save_tiny(tmp_path / "vae")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointCorruptError, match="not valid JSON"):
        load_codec(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_res_blocks": 2}, "missing"),
        ({"base_dim": 16}, "expected"),
        ({"temperal_downsample": [True, False], "scale_factor_temporal": 2}, "unexpected"),
        ({"is_residual": True, "dim_mult": [1, 2, 3]}, "is_residual cannot"),
    ],
)
def test_weights_of_another_shape_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "vae")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(CheckpointError, match=message):
        load_codec(folder)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "vae")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("helios.storage.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_codec(Codec(WanAutoencoder(TINY)), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_published_size_has_the_published_tensors() -> None:
    with torch.device("meta"):
        ours, theirs = WanAutoencoder(AutoencoderConfig()), AutoencoderKLWan()
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    assert sum(value.numel() for value in ours.parameters()) == pytest.approx(126.9e6, rel=1e-3)
