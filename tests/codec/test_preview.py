"""The preview decoder: shapes, storage, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helios.codec import (
    Codec,
    PreviewCodec,
    PreviewConfig,
    PreviewDecoder,
    load_preview,
    save_preview,
)
from helios.errors import CheckpointError


@pytest.fixture
def codec(make_codec: Callable[..., Codec]) -> Codec:
    return make_codec(seed=0)


@pytest.fixture
def preview() -> PreviewDecoder:
    torch.manual_seed(1)
    return PreviewDecoder(PreviewConfig(widths=(8, 6, 4)))


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_frames_are_as_many_as_the_codecs(
    codec: Codec, preview: PreviewDecoder, frames: int
) -> None:
    latents = torch.randn(2, 16, frames, 3, 5)
    stand_in = PreviewCodec(codec, preview)
    exact, made = codec.decode(latents), stand_in.decode(latents)
    assert made.shape == exact.shape == (2, 3, 1 + 4 * (frames - 1), 24, 40)
    assert made.abs().max() <= 1
    levels = stand_in.decode_uint8(latents)
    assert levels.shape == codec.decode_uint8(latents).shape
    assert levels.dtype == torch.uint8
    torch.testing.assert_close(levels.movedim(-1, 1).float(), (made * 127.5 + 127.5).round())


@pytest.mark.parametrize(("patch", "frames"), [(16, 4), (8, 2)])
def test_other_ratios(patch: int, frames: int) -> None:
    decoder = PreviewDecoder(PreviewConfig(widths=(8, 6, 4), pixels=patch, frames=frames))
    made = decoder(torch.randn(1, 16, 3, 2, 4))
    assert made.shape == (1, 3, 1 + 2 * frames, 2 * patch, 4 * patch)


def test_a_frame_depends_on_its_neighbourhood_only(preview: PreviewDecoder) -> None:
    latents = torch.randn(1, 16, 5, 4, 6)
    changed = latents.clone()
    changed[:, :, 4] += 1
    with torch.no_grad():
        apart = (preview(latents) - preview(changed)).abs().amax((0, 1, 3, 4))
    # Latent frame 3, which sees number 4, holds frames 9 to 12.
    assert (apart[:9] == 0).all()
    assert (apart[9:] > 0).all()


def test_encoding_and_weights_are_the_codecs(codec: Codec, preview: PreviewDecoder) -> None:
    stand_in = PreviewCodec(codec, preview)
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert stand_in.network is codec.network
    assert torch.equal(stand_in.encode(clip), codec.encode(clip))
    with pytest.raises(ValueError, match="latents must be"):
        stand_in.decode(torch.randn(1, 4, 2, 3, 5))


def test_saved_and_read_back(codec: Codec, preview: PreviewDecoder, tmp_path: Path) -> None:
    save_preview(preview, tmp_path / "preview", codec)
    read = load_preview(tmp_path / "preview", codec)
    assert read.config == preview.config
    halved = {name: value.half().float() for name, value in preview.state_dict().items()}
    assert all(torch.equal(value, halved[name]) for name, value in read.state_dict().items())


def test_what_does_not_fit_is_refused(
    codec: Codec, preview: PreviewDecoder, tmp_path: Path
) -> None:
    save_preview(preview, tmp_path / "preview", codec)
    other = codec.with_statistics([1.0] * 16, [1.0] * 16)
    with pytest.raises(CheckpointError, match=r"another autoencoder.*helios train"):
        load_preview(tmp_path / "preview", other)
    with pytest.raises(CheckpointError, match="missing"):
        load_preview(tmp_path / "nothing", codec)
    (tmp_path / "preview" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(CheckpointError, match="does not hold a preview decoder"):
        load_preview(tmp_path / "preview", codec)
    with pytest.raises(ValueError, match="for another autoencoder"):
        PreviewCodec(codec, PreviewDecoder(PreviewConfig(widths=(8, 6, 4), pixels=16)))


@pytest.mark.parametrize(
    "bad", [{"pixels": 6}, {"widths": (8, 0, 4)}, {"blocks": -1}, {"frames": 0}]
)
def test_config_refuses_what_cannot_be_built(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PreviewConfig(**bad)  # type: ignore[arg-type]
