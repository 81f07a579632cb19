"""Start images and videos: geometry of `fit`, and windows equal to what diffusers feeds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel
from PIL import Image

from helios.codec import AutoencoderConfig, Codec, WanAutoencoder, save_codec
from helios.conditioning import fit, image_start, video_start
from helios.history import History, HistoryWindow, start_noise

HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    network = WanAutoencoder(
        AutoencoderConfig(
            base_dim=8,
            dim_mult=(1, 2, 2),
            num_res_blocks=1,
            temperal_downsample=(True, True),
            patch_size=2,
            in_channels=12,
            out_channels=12,
        )
    )
    return Codec(network)


@pytest.fixture(scope="module")
def oracle(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> HeliosPipeline:
    folder: Path = tmp_path_factory.mktemp("vae")
    save_codec(codec, folder)
    transformer = HeliosTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=8,
        ffn_dim=8,
        num_layers=1,
        rope_dim=(4, 4, 4),
    )
    return HeliosPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan.from_pretrained(folder),
        scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True),
        transformer=transformer,
    )


class _Seen(Exception):  # noqa: N818
    """Carries the first call of the transformer out of the oracle."""


def window_of(
    pipe: HeliosPipeline, monkeypatch: pytest.MonkeyPatch, **start: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle's first window ``[B, C, 20, h, w]`` and the noise drawn right after it."""

    def forward(**inputs: Any) -> None:
        short, mid, long = (inputs[f"latents_history_{part}"] for part in ("short", "mid", "long"))
        window = torch.cat((short[:, :, :1], long, mid, short[:, :, 1:]), dim=2)
        raise _Seen(window, inputs["hidden_states"])

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    with pytest.raises(_Seen) as caught:
        pipe(
            prompt_embeds=torch.zeros(1, 4, 8),
            guidance_scale=1.0,
            height=HEIGHT,
            width=WIDTH,
            num_frames=33,
            num_inference_steps=2,
            **start,
        )
    return caught.value.args  # type: ignore[return-value]


def pixels(frames: int, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth moving colours."""
    rng = np.random.default_rng(seed)
    t, y, x = np.ogrid[:frames, :height, :width]
    waves = [np.sin(a * t + b * y + c * x + d) for a, b, c, d in rng.uniform(0, 0.5, (3, 4))]
    return (np.stack(waves, axis=-1) * 127 + 128).astype(np.uint8)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------- parity


def check(history: History, ours: torch.Generator, theirs: tuple[torch.Tensor, ...]) -> None:
    window, noise = theirs
    assert (history.window().frames - window).abs().max() <= 1e-5 * max(1, window.abs().max())
    # The generators stand at the same place: the next chunk's noise is the same.
    assert torch.equal(torch.randn(noise.shape, generator=ours), noise)


@pytest.mark.parametrize("levels", [(0.111, 0.135), (0.0, 0.0), (0.3, 0.9)])
def test_image_start_equals_diffusers(
    codec: Codec,
    oracle: HeliosPipeline,
    monkeypatch: pytest.MonkeyPatch,
    levels: tuple[float, float],
) -> None:
    image = pixels(1)
    low, high = levels
    theirs = window_of(
        oracle,
        monkeypatch,
        image=Image.fromarray(image[0]),
        generator=generator(),
        image_noise_sigma_min=low,
        image_noise_sigma_max=high,
    )
    ours = generator()
    history = image_start(codec, fit(image, HEIGHT, WIDTH), ours, image_noise=levels)
    check(history, ours, theirs)
    assert history.window().present[0].tolist() == [True] + [False] * 18 + [True]


@pytest.mark.parametrize("frames", [33, 40, 65, 99, 150])
def test_video_start_equals_diffusers(
    codec: Codec, oracle: HeliosPipeline, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """150 frames are four chunks, of which the first is drawn for but not encoded here."""
    video = pixels(frames)
    theirs = window_of(
        oracle,
        monkeypatch,
        video=[Image.fromarray(frame) for frame in video],
        generator=generator(),
        video_noise_sigma_min=0.2,
        video_noise_sigma_max=0.7,
    )
    ours = generator()
    history = video_start(codec, fit(video, HEIGHT, WIDTH), ours, video_noise=(0.2, 0.7))
    check(history, ours, theirs)
    known = min(frames // 33 * 9, 19)
    assert history.window().present[0].tolist() == [True] + [False] * (19 - known) + [True] * known


# ----------------------------------------------------------------------------------- own rules


def test_image_start_by_hand(codec: Codec) -> None:
    """Without noise and with a certain posterior the window is the two latents themselves."""
    image = fit(pixels(1, seed=3), HEIGHT, WIDTH)
    certain = Codec(codec.network)
    certain.encode = lambda frames, generator: codec.encode(frames)  # type: ignore[assignment]
    history = image_start(certain, image, generator(), image_noise=(0, 0), video_noise=(0, 0))
    window = history.window()
    assert torch.equal(window.anchor, codec.encode(image))
    still = codec.encode(image.repeat(1, 1, 33, 1, 1))
    assert torch.equal(window.recent, still[:, :, -1:])
    assert window.long.abs().max() == window.mid.abs().max() == 0


def test_short_video_stands_still_before_it_moves(codec: Codec) -> None:
    for frames in (1, 20, 32):
        video = fit(pixels(frames), HEIGHT, WIDTH)
        padded = torch.cat((video[:, :, :1].repeat(1, 1, 33 - frames, 1, 1), video), dim=2)
        ours, theirs = generator(), generator()
        short = video_start(codec, video, ours).window()
        assert torch.equal(short.frames, video_start(codec, padded, theirs).window().frames)
        assert short.present[0].sum() == 1 + 9


def test_start_depends_on_the_seed_only(codec: Codec) -> None:
    image = fit(pixels(1), HEIGHT, WIDTH)

    def frames(seed: int) -> torch.Tensor:
        window: HistoryWindow = image_start(codec, image, generator(seed)).window()
        return window.frames

    assert torch.equal(frames(1), frames(1))
    assert not torch.equal(frames(1), frames(2))


def test_noise_level_is_what_was_asked_for(codec: Codec) -> None:
    """All noise: nothing of the image is left, whatever the image."""
    first, second = (fit(pixels(1, seed), HEIGHT, WIDTH) for seed in (1, 2))
    full = {"image_noise": (1.0, 1.0), "video_noise": (1.0, 1.0)}
    windows = [image_start(codec, image, generator(), **full).window() for image in (first, second)]
    assert torch.allclose(windows[0].frames, windows[1].frames)
    assert start_noise(torch.zeros(1, 16, 1, 4, 6), 1.0, 1.0, generator()).std() > 0.5


def test_wrong_shapes_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="image must be"):
        image_start(codec, torch.zeros(1, 3, 2, 32, 48), generator())
    with pytest.raises(ValueError, match="video must be"):
        video_start(codec, torch.zeros(1, 3, 0, 32, 48), generator())


# ------------------------------------------------------------------------------------- fitting


def test_fit_of_the_right_size_is_exact() -> None:
    frames = pixels(3)
    result = fit(frames, HEIGHT, WIDTH)
    assert result.shape == (1, 3, 3, HEIGHT, WIDTH)
    assert result.dtype == torch.float32
    assert torch.equal(result[0, :, 1].movedim(0, -1), 2 * (torch.tensor(frames[1]) / 255.0) - 1)
    assert torch.equal(fit(torch.tensor(frames), HEIGHT, WIDTH), result)
    assert torch.equal(fit(frames[0], HEIGHT, WIDTH), result[:, :, :1])
    frames.flags.writeable = False
    assert torch.equal(fit(frames[:, ::-1], HEIGHT, WIDTH), result.flip(3))


@pytest.mark.parametrize(
    "size", [(64, 96), (64, 200), (200, 96), (17, 31), (32, 49), (300, 33), (1, 1)]
)
def test_fit_covers_any_shape_in_range(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    result = fit(frames, HEIGHT, WIDTH)
    assert result.shape == (1, 3, 2, HEIGHT, WIDTH)
    assert result.min() >= -1
    assert result.max() <= 1


def test_fit_keeps_the_middle_and_does_not_stretch() -> None:
    """A disc in the middle stays a disc there; what is cut is the border."""
    for rows, columns in ((120, 400), (400, 120), (128, 192)):
        y, x = np.ogrid[:rows, :columns]
        radius = 0.3 * min(rows, columns * HEIGHT / WIDTH)
        disc = ((y - (rows - 1) / 2) ** 2 + (x - (columns - 1) / 2) ** 2) < radius**2
        picture = np.repeat((disc * 255).astype(np.uint8)[..., None], 3, axis=2)
        shown = (fit(picture, HEIGHT, WIDTH)[0, 0, 0] + 1) / 2
        down, right = shown.sum(1), shown.sum(0)
        assert shown.sum() == pytest.approx(np.pi * (0.3 * HEIGHT) ** 2, rel=0.03)
        assert down.max() == pytest.approx(right.max(), abs=1)
        assert (down @ torch.arange(HEIGHT * 1.0)) / down.sum() == pytest.approx(
            (HEIGHT - 1) / 2, abs=0.1
        )
        assert (right @ torch.arange(WIDTH * 1.0)) / right.sum() == pytest.approx(
            (WIDTH - 1) / 2, abs=0.1
        )


def test_fit_is_antialiased() -> None:
    """A fine chequerboard becomes grey, not a moiré of black and white."""
    board = np.indices((HEIGHT * 4, WIDTH * 4)).sum(0) % 2 * 255
    shown = fit(np.repeat(board.astype(np.uint8)[..., None], 3, axis=2), HEIGHT, WIDTH)
    assert shown[..., 2:-2, 2:-2].abs().max() < 0.05


def test_fit_refuses_other_types() -> None:
    for frames in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            fit(frames, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="empty"):
        fit(np.zeros((0, 8, 8, 3), np.uint8), HEIGHT, WIDTH)
