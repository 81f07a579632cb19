"""Forecasts against what is published, counted and measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import helios
from helios.codec import AutoencoderConfig
from helios.history import History
from helios.model import HeliosTransformer, TransformerConfig
from helios.pipeline import MACHINES, Machine, find_machine, forecast, inspect_model, measure
from helios.pipeline.memory import close_gaps
from helios.pipeline.plan import (
    check_chunk_fits,
    check_fits,
    decode_flops,
    forward_flops,
    transformer_activations,
)

PLENTY = Machine(name="CPU", kind="cpu", memory=1e12, host=1e12)


@pytest.mark.parametrize(("scale", "tera"), [(4, 69.739), (2, 119.104), (1, 359.563)])
def test_work_of_the_published_transformer(scale: int, tera: float) -> None:
    """Section 10.1, counted there on another implementation."""
    counted = forward_flops(TransformerConfig(), 48, 80, scale=scale)
    assert counted / 1e12 == pytest.approx(tera, rel=1e-4)


def test_work_of_the_published_decoder() -> None:
    """Section 10.2 has 69.3, for a decoder that makes what it then cuts off."""
    assert decode_flops(AutoencoderConfig(), 48, 80) / 1e12 == pytest.approx(69.3, rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_counted_exactly(tiny_random: Path, dtype: torch.dtype) -> None:
    sizes = measure(inspect_model(tiny_random), dtype)
    loaded = helios.load(tiny_random, device="cpu", dtype=dtype)
    assert loaded.text_encoder is not None
    modules = {
        "transformer": loaded.transformer,
        "vae": loaded.codec.network,
        "text_encoder": loaded.text_encoder,
    }
    for part, module in modules.items():
        assert sizes.parts[part] == sum(p.nbytes for p in module.parameters()), part
    assert sizes.largest == max(p.nbytes for m in modules.values() for p in m.parameters())


def test_activations_are_what_a_forward_pass_takes() -> None:
    config = TransformerConfig(
        num_attention_heads=4, attention_head_dim=32, rope_dim=(12, 10, 10), num_layers=2,
        ffn_dim=340, text_dim=32, freq_dim=32,
    )  # fmt: skip
    model = HeliosTransformer(config).eval()
    window = History.empty(1, 16, 24, 40, device="cpu").window()
    inputs = (torch.randn(1, 16, 9, 24, 40), torch.tensor([500.0]), torch.randn(1, 8, 32), window)
    with torch.no_grad():
        model(*inputs)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            model(*inputs)
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    predicted = transformer_activations(config, 24, 40, torch.float32)
    assert 0.85 * peak < predicted < 1.3 * peak


def test_the_published_model_in_figures(tiny_random: Path, tmp_path: Path) -> None:
    """14.3 B parameters in bfloat16, 29 M of them in float32; two steps a scale on an H100."""
    import json
    import shutil

    folder = Path(shutil.copytree(tiny_random, tmp_path / "model"))
    (folder / "transformer" / "config.json").write_text(
        json.dumps(TransformerConfig().to_json()), "utf-8"
    )
    (folder / "vae" / "config.json").write_text(json.dumps(AutoencoderConfig().to_json()), "utf-8")
    (folder / "helios.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "HeliosPyramidPipeline", "is_distilled": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    model = inspect_model(folder)
    found = forecast(model, MACHINES["h100"], torch.bfloat16)
    assert found.weights["transformer"] == pytest.approx(2 * 14_312_427_584 + 2 * 29.2e6, rel=1e-5)
    assert found.flops / 1e12 == pytest.approx(1096.8 + 66.1, rel=0.01)
    # An H200 made 16.6 frames a second and took 40.9 GB (docs/results.md); the same peak.
    assert found.fps == pytest.approx(16.6, rel=0.1)
    assert found.device == pytest.approx(40.9e9, rel=0.05)
    assert found.problems() == {}
    small = MACHINES["rtx4090"]
    assert set(forecast(model, small, torch.bfloat16).problems()) == {"memory"}
    frugal = forecast(model, small, torch.float8_e4m3fn, low_memory=True)
    assert frugal.problems() == {}
    assert frugal.away == {"text_encoder"}
    # 13.2 of 14.3 B weights in one byte; 40 x (6 x 5120 + 13824 + 5120) scales beside them.
    eight = frugal.weights["transformer"]
    narrow = 40 * (5 * 5120**2 + 2 * 5120 * 13824)
    scales = 4 * 40 * (5 * 5120 + 13824 + 5120)
    assert eight == found.weights["transformer"] - narrow + scales
    # Two blocks more than the bytes that are missing: they have room to come.
    block = narrow // 40 + scales // 40 + 2 * 5120**2
    tight = forecast(model, MACHINES["rtx4080"], torch.float8_e4m3fn, low_memory=True)
    assert tight.problems() == {}
    missing = (frugal.device - (MACHINES["rtx4080"].memory or 0)) / 1.03
    assert tight.streamed == math.ceil(missing / block) + 2
    less = 1.03 * (tight.streamed - 2) * block
    assert tight.device == pytest.approx(frugal.device - less, abs=2)
    assert tight.host == frugal.host + tight.streamed * block
    assert forecast(model, small, torch.bfloat16, low_memory=True).problems() == {}
    least = replace(small, memory=6e9)
    found = forecast(model, least, torch.float8_e4m3fn, low_memory=True)
    assert set(found.problems()) == {"memory"}
    with pytest.raises(
        MemoryError, match="need less with --dtype fp8 --low-memory; see helios plan"
    ):
        check_chunk_fits(model, small, torch.bfloat16, 384, 640)
    with pytest.raises(ValueError, match="nearest legal"):
        forecast(model, PLENTY, torch.bfloat16, height=400, width=640)


def test_what_cannot_fit_is_refused_before_anything_is_read(
    tiny_random: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = inspect_model(tiny_random)
    check_fits(model, torch.device("cpu"), torch.float32)
    monkeypatch.setattr("helios.pipeline.machines.available_memory", lambda: 1000)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("helios.storage.Weights.read", read)
    with pytest.raises(MemoryError, match="are needed"):
        helios.load(tiny_random, device="cpu")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_size_whose_chunk_cannot_fit_is_refused(tiny_random: Path, kind: str) -> None:
    model, machine = inspect_model(tiny_random), replace(PLENTY, kind=kind)
    found = forecast(model, machine, torch.float32)
    need = sum(found.weights.values()) + found.activations
    size = model.defaults.height, model.defaults.width
    for memory in (None, need):
        check_chunk_fits(model, replace(machine, memory=memory), torch.float32, *size)
    with pytest.raises(MemoryError, match=f"{size[1]}x{size[0]}.* are needed and"):
        check_chunk_fits(model, replace(machine, memory=need - 1), torch.float32, *size)


def test_disk_and_memory_problems_are_named(tiny_random: Path) -> None:
    found = forecast(inspect_model(tiny_random), PLENTY, torch.float32)
    assert found.problems() == {}
    assert found.fps is None
    full = replace(found, download=10, disk_free=1)
    assert set(full.problems()) == {"disk"}
    cramped = replace(found, machine=replace(PLENTY, kind="cuda", host=1.0))
    assert "host memory" in cramped.problems()["memory"]


def test_what_is_free_on_a_gpu_of_which_nobody_said_the_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``torch.device("cuda")`` has no index, and not all of PyTorch's functions take that."""

    def share(device: int | torch.device) -> float:
        if isinstance(device, torch.device) and device.index is None:
            raise ValueError(f"a torch.device with a specified index is expected, not {device}")
        return 0.5

    for name, value in {
        "get_device_name": lambda _: "NVIDIA H200",
        "current_device": lambda: 0,
        "mem_get_info": lambda _: (90.0, 100.0),
        "memory_reserved": lambda _: 10.0,
        "get_per_process_memory_fraction": share,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for device in ("cuda", "cuda:0"):
        found = find_machine(torch.device(device))
        assert (found.memory, found.flops) == (40.0, 989e12)


def test_settings_that_users_made_for_the_allocator_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    close_gaps()
    assert told == []
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    close_gaps()
    assert told == ["expandable_segments:True"]
