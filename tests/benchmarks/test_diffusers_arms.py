"""The engine to beat with FlashAttention-3, its function replaced by the plain one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from helios.evaluation import BenchConfig, Subject, bench
from helios.kernels import Machine, attention, simulated

PROGRAMS = Path(__file__).parents[2] / "benchmarks"
HOPPER = Machine(capability=(9, 0), flash3=True)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("diffusers_arms")


def test_flash3_is_called_for_every_attention(
    program: ModuleType, subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models import attention_dispatch

    calls: list[torch.Size] = []

    def stand_in(q: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        assert backend == "flash3"
        calls.append(q.shape)
        return attention(q, k, v)

    monkeypatch.setattr(program, "attention", stand_in)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN_3", False)
    monkeypatch.setattr(attention_dispatch, "flash_attn_3_func", None)
    monkeypatch.setattr(
        attention_dispatch,
        "_wrapped_flash_attn_3",
        attention_dispatch._wrapped_flash_attn_3._init_fn,
    )
    made = subject()
    makers = program._Makers(made)
    # Of the configuration's own making: what monkeypatch puts back is lost to all tests after this.
    with torch._dynamo.config.patch(disable=True):
        with simulated(HOPPER):
            arm = makers.flash3()
        assert arm.name == "diffusers compiled, FA3, fp32 decoder"
        assert len(calls) == 4
        x, time = made.noisy(1), made.told(742)
        expected = makers.eager().velocity(x, time)
        assert len(calls) == 4
        torch.testing.assert_close(arm.velocity(x, time), expected)
        assert len(calls) == 8


@pytest.mark.parametrize("machine", [Machine(), Machine(capability=(8, 0), flash3=True)])
def test_without_it_one_line_says_why(
    program: ModuleType, subject: Callable[..., Subject], machine: Machine
) -> None:
    made = subject()
    config = BenchConfig(plans=((1, 1, 1),), warm=1, chunks=1, rounds=1, forwards=1)
    with simulated(machine):
        result = bench(made, [program._Makers(made).flash3], config)
    assert result["left_out"] == [
        "flash3: RuntimeError: FlashAttention-3 needs a Hopper GPU and the package fa3-fwd"
    ]


def test_a_kernel_that_fails_costs_its_own_arm_only(
    program: ModuleType, subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Tensor:
        raise AssertionError("wrong stride\nand more")

    arm = program._Makers(subject()).eager()
    monkeypatch.setattr(arm, "velocity", broken)
    with pytest.raises(RuntimeError, match="AssertionError: wrong stride") as caught:
        program.tried(arm)
    assert "\n" not in str(caught.value)
