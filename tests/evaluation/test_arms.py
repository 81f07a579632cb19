"""The arms of this package on the smallest weights: exact ones agree, the others are near."""

from __future__ import annotations

import torch

from helios.codec import AutoencoderConfig
from helios.evaluation import BenchConfig, Subject, bench, own_arms, random_codec
from helios.evaluation import random_transformer as make
from helios.kernels import Machine, simulated
from helios.model import TransformerConfig, is_quantised
from helios.presets import generation

CPU = torch.device("cpu")


def subject() -> Subject:
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
    return Subject.make(
        make(network, CPU, torch.bfloat16),
        random_codec(codec, CPU, torch.float32),
        generation.published_schedule(distilled=True),
        height=64,
        width=64,
        tokens=16,
        name="small",
    )


def test_every_arm_of_a_hopper_gpu() -> None:
    made = subject()
    config = BenchConfig(plans=((2, 1, 1),), warm=1, chunks=1, rounds=1, forwards=1)
    with simulated(Machine(capability=(9, 0))):
        makers = own_arms(made)
        result = bench(made, makers, config)
    assert result["left_out"] == []
    assert len(result["arms"]) == len(makers) == 6
    for name, arm in result["arms"].items():
        errors = [part["relative_l2"] for part in arm["error"]]
        latents = arm["plans"]["2,1,1"]["latents"]["relative_l2"]
        if arm["kind"] == "exact":
            assert max(errors) < 0.02, name
        if arm["kind"] == "rounding":
            assert 0.01 < max(errors) < 0.15, name
        if "history" in name:
            # One step of three repeats a scale, two follow the first of the chunk.
            assert latents > 0, name
        assert latents < 0.5, name
    assert not is_quantised(made.transformer)


def test_only_what_the_machine_has() -> None:
    names = [maker.__name__ for maker in own_arms(subject())]
    assert names == ["helios", "history_once_a_scale", "history_once_a_chunk"]
