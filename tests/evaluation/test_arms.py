"""The arms of this package on the smallest weights: exact ones agree, the others are near."""

from __future__ import annotations

import torch

from helios.evaluation import BenchConfig, bench, own_arms
from helios.kernels import Machine, machine_of, simulated
from helios.model import is_quantised


def test_every_arm_of_a_hopper_gpu(subject) -> None:
    made = subject(torch.bfloat16, torch.float32)
    config = BenchConfig(plans=((2, 1, 1),), warm=1, chunks=1, rounds=1, forwards=1)
    with simulated(Machine(capability=(9, 0))):
        makers = own_arms(made)
        result = bench(made, makers, config)
    assert result["left_out"] == []
    assert len(result["arms"]) == len(makers) == 8
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
    arms = result["arms"]
    usual = arms["helios, fp8, history once a chunk"]
    preview = arms["helios, fp8, history once a chunk, preview decoder"]
    assert preview["error"] == usual["error"]
    assert preview["decode_error"]["relative_l2"] > 10 * usual["decode_error"]["relative_l2"]
    assert not is_quantised(made.transformer)


def test_only_what_the_machine_has(subject) -> None:
    names = [maker.__name__ for maker in own_arms(subject(torch.bfloat16, torch.float32))]
    assert names == ["helios", "history_once_a_scale", "history_once_a_chunk"]


def test_flash3_has_an_arm_without_it(subject) -> None:
    made = subject(torch.bfloat16, torch.float32)
    with simulated(Machine(capability=(9, 0), flash3=True)):
        makers = {maker.__name__: maker for maker in own_arms(made)}
        arm = makers["without_flash3"]()
        with arm.active():
            assert not machine_of(made.device).runs_flash3
            assert machine_of(made.device).runs_fp8
        assert machine_of(made.device).runs_flash3
