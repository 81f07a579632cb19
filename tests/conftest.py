"""Small random models: every room is real, only the weights have learnt nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from helios.codec import AutoencoderConfig, Codec
    from helios.evaluation import Subject
    from helios.pipeline import GenerationConfig, Pipeline

# No test talks to the real hub; children of tests do not either.
os.environ["HF_HUB_OFFLINE"] = "1"

WORDS = ("a an red green blue ball cube cone rolls bounces spins on over grass sand snow and",)


def small_transformer(seed: int = 0) -> torch.nn.Module:
    from helios.model import HeliosTransformer, TransformerConfig

    torch.manual_seed(seed)
    config = TransformerConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        rope_dim=(4, 6, 6),
        text_dim=24,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
    )
    model = HeliosTransformer(config)
    with torch.no_grad():
        # Norms, tables and biases start at 0 or 1, where a mistake in them would not show.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def small_autoencoder() -> AutoencoderConfig:
    from helios.codec import AutoencoderConfig

    return AutoencoderConfig(
        base_dim=8,
        dim_mult=(1, 1, 1),
        num_res_blocks=1,
        temperal_downsample=(True, True),
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )


def small_codec(seed: int = 1) -> Codec:
    from helios.codec import Codec, WanAutoencoder

    torch.manual_seed(seed)
    return Codec(WanAutoencoder(small_autoencoder()))


def small_text_encoder(seed: int = 2) -> torch.nn.Module:
    from helios.conditioning import tiny_umt5, word_tokenizer

    torch.manual_seed(seed)
    tokenizer = word_tokenizer(WORDS, max_length=16)
    return tiny_umt5(tokenizer, dim=24, layers=2, heads=2, head_dim=8, ffn=32).eval()


def small_pipeline(defaults: GenerationConfig | None = None, *, stages: int = 1) -> Pipeline:
    """A random pipeline on the CPU, 32x48 pixels, 3 steps with guidance."""
    from helios.diffusion import CFG, Flat, ScheduleConfig, ShiftLaw
    from helios.pipeline import GenerationConfig, Pipeline

    defaults = defaults or GenerationConfig(
        height=32, width=48, num_frames=33, plan=Flat(steps=3), guidance=CFG(2.0)
    )
    # At the published gamma of 1/3 the covariance of the block noise is singular, and whether
    # diffusers can factor it depends on the CPU's linear algebra library.
    schedule = ScheduleConfig(
        stages=stages, gamma=0.3, dynamic=ShiftLaw(kind="exponential"), lag=True
    )
    return Pipeline(
        small_transformer(), small_codec(), small_text_encoder(), defaults, schedule, name="small"
    )


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., Codec]:
    """`small_codec`: random weights of a seed, a new one at each call."""
    return small_codec


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Pipeline]:
    """`small_pipeline`: a new one at each call, which the test may change."""
    return small_pipeline


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """A random pipeline in memory; tests must not change it."""
    return small_pipeline()


@pytest.fixture(scope="session")
def tiny_random(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> Path:
    """The same as a folder in the published layout; tests must not change it."""
    return pipeline.save(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def subject() -> Callable[..., Subject]:
    """Makes what engines are measured on, at the smallest size whose products e4m3 can do."""
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
    cpu = torch.device("cpu")

    def make(dtype: torch.dtype = torch.float32, codec_dtype: torch.dtype | None = None) -> Subject:
        return Subject.make(
            random_transformer(network, cpu, dtype),
            random_codec(small_autoencoder(), cpu, codec_dtype or dtype),
            generation.published_schedule(distilled=True),
            height=64,
            width=64,
            tokens=16,
            name="small",
        )

    return make
