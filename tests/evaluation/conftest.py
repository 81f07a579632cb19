"""The random pipeline of the whole suite, at a size where a chunk takes a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helios.evaluation import Subject
    from helios.pipeline import Pipeline


@pytest.fixture(scope="session")
def little(pipeline: Pipeline) -> Pipeline:
    """32x48 pixels, two steps; tests must not change it."""
    from helios.diffusion import Flat
    from helios.pipeline import Pipeline

    defaults = replace(pipeline.defaults, height=32, width=48, plan=Flat(steps=2))
    return Pipeline(
        pipeline.transformer,
        pipeline.codec,
        pipeline.text_encoder,
        defaults,
        pipeline.schedule,
        name="little",
    )


@pytest.fixture(scope="session")
def little_folder(tmp_path_factory: pytest.TempPathFactory, little: Pipeline) -> Path:
    """The same in the published layout; tests must not change it."""
    return little.save(tmp_path_factory.mktemp("models") / "little")


@pytest.fixture(scope="session")
def subject() -> Callable[..., Subject]:
    """Makes what engines are measured on, at the smallest size whose products e4m3 can do."""
    import torch

    from helios.codec import AutoencoderConfig
    from helios.evaluation import Subject, random_codec, random_transformer
    from helios.model import TransformerConfig
    from helios.presets import generation

    network = TransformerConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        rope_dim=(4, 6, 6),
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )
    codec = AutoencoderConfig(
        base_dim=8,
        dim_mult=(1, 1, 1),
        num_res_blocks=1,
        temperal_downsample=(True, True),
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )
    cpu = torch.device("cpu")

    def make(dtype: torch.dtype = torch.float32, codec_dtype: torch.dtype | None = None) -> Subject:
        return Subject.make(
            random_transformer(network, cpu, dtype),
            random_codec(codec, cpu, codec_dtype or dtype),
            generation.published_schedule(distilled=True),
            height=64,
            width=64,
            tokens=16,
            name="small",
        )

    return make
