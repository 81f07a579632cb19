import json

import pytest
import torch
from diffusers import AutoencoderKLWan

from helios.codec import AutoencoderConfig
from helios.errors import CheckpointError

from .pairs import TINY, draw_config


def test_defaults_are_the_published_ones() -> None:
    with torch.device("meta"):
        published = AutoencoderKLWan().config
    ours = AutoencoderConfig().to_json()
    assert ours.pop("_class_name") == "AutoencoderKLWan"
    assert {key: published[key] for key in ours} == ours


@pytest.mark.parametrize("seed", range(12))
def test_json_round_trip(seed: int) -> None:
    config = draw_config(seed)
    assert AutoencoderConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_ratios() -> None:
    assert (TINY.temporal_ratio, TINY.spatial_ratio, TINY.colours) == (4, 8, 3)
    wan22 = AutoencoderConfig(
        is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16
    )
    assert (wan22.temporal_ratio, wan22.spatial_ratio) == (4, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperal_downsample": [True]}, "temperal_downsample needs 3"),
        ({"latents_mean": [0.0]}, "latents_mean needs 16"),
        ({"latents_std": [0.0] * 16}, "must be positive"),
        ({"latents_std": [float("nan")] * 16}, "finite"),
        ({"patch_size": 2}, "multiple of patch_size"),
        ({"scale_factor_spatial": 16}, "scale factors"),
        ({"base_dim": 0}, "at least 1"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        AutoencoderConfig.from_json(change)
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**plain)  # type: ignore[arg-type]


def test_foreign_configurations_are_refused() -> None:
    with pytest.raises(CheckpointError, match="AutoencoderKL, expected AutoencoderKLWan"):
        AutoencoderConfig.from_json({"_class_name": "AutoencoderKL"})
    with pytest.raises(CheckpointError, match="colour_space"):
        AutoencoderConfig.from_json({"colour_space": "lab"})
    with pytest.raises(CheckpointError, match="not usable"):
        AutoencoderConfig.from_json({"base_dim": "wide"})
