"""Requirement 38: what memory cannot hold is refused with figures, before any work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helios.serving.errors import ApiError
from helios.serving.requests import check_memory

GB = 10**9


def model(device: str, chunk: float, *, device_free: float | None, host: float | None) -> Any:
    """What a worker says of itself; its own size is 640x384."""
    return {
        "device": device,
        "defaults": {"height": 384, "width": 640},
        "memory": {"chunk": chunk, "device_free": device_free, "host_free": host},
    }


def refusal(values: dict[str, int], info: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_memory(values, info)
    assert (caught.value.status, caught.value.code) == (400, "out_of_memory")
    assert caught.value.param == "size"
    return caught.value


def test_on_a_gpu_the_chunk_counts_there_and_frames_count_on_the_host() -> None:
    info = model("cuda:0", 2 * GB, device_free=5 * GB, host=GB)
    check_memory({}, info)
    check_memory({"width": 1280, "height": 384}, info)  # twice the area: 4 GB
    error = refusal({"width": 1280, "height": 704}, info)
    # 2 GB x 1280 x 704 / (640 x 384) = 7.3 GB
    assert "7.3 GB of cuda:0 and there are 5.0 GB" in error.message
    few = model("cuda:0", 2 * GB, device_free=50 * GB, host=GB // 10)
    # four chunks of 33 frames of three bytes: 0.36 GB
    assert (
        "0.4 GB of memory and there are 0.1 GB"
        in refusal({"width": 1280, "height": 704}, few).message
    )


def test_on_a_cpu_both_come_out_of_the_same_memory() -> None:
    info = model("cpu", 2 * GB, device_free=None, host=3 * GB)
    check_memory({"width": 640, "height": 384}, info)
    assert (
        "4.2 GB of memory and there are 3.0 GB"
        in refusal({"width": 1280, "height": 384}, info).message
    )


def test_where_the_system_does_not_tell_nothing_is_refused() -> None:
    check_memory({"width": 1280, "height": 704}, model("cpu", GB, device_free=None, host=None))


def test_the_own_size_counts_if_none_is_named() -> None:
    refusal({}, model("cuda:0", 2 * GB, device_free=GB, host=9 * GB))
    # One side alone is never sent on; the other is the model's own.
    refusal({"width": 1280}, model("cuda:0", 2 * GB, device_free=3 * GB, host=9 * GB))


def test_a_worker_counts_what_overlaps_on_its_device(tiny_random: Any) -> None:
    """What ``helios plan`` says: on CUDA decoding runs beside the making of the next chunk."""
    from helios.pipeline import Machine, forecast, inspect_model, load
    from helios.serving.worker.__main__ import _chunk

    pipeline, folder = load(tiny_random, "cpu", "float32"), inspect_model(str(tiny_random))
    size = pipeline.defaults.height, pipeline.defaults.width
    said = {}
    for kind in ("cpu", "cuda"):
        like: Any = SimpleNamespace(
            transformer=pipeline.transformer,
            codec=pipeline.codec,
            dtype=pipeline.dtype,
            device=torch.device(kind),
        )
        said[kind] = _chunk(like, *size)
        machine = Machine(name=kind, kind=kind, memory=None, host=None)
        assert said[kind] == forecast(folder, machine, pipeline.dtype).activations
    assert said["cuda"] > said["cpu"]


def test_a_worker_says_what_its_own_size_takes(tiny_random: Any) -> None:
    """The estimate is that of ``helios plan``; it grows at least as fast as what is asked."""
    from helios.pipeline import available_memory, chunk_memory, load
    from helios.serving.worker.__main__ import _describe

    pipeline = load(tiny_random, "cpu", "float32")
    said = _describe(pipeline)
    memory, defaults = said["memory"], pipeline.defaults
    configs = pipeline.transformer.config, pipeline.codec.config
    own = chunk_memory(*configs, defaults.height, defaults.width, pipeline.dtype)
    assert memory["chunk"] == own > 0
    assert memory["device_free"] is None
    assert memory["host_free"] == pytest.approx(available_memory(), rel=0.2)
    large = chunk_memory(*configs, 4 * defaults.height, 4 * defaults.width, pipeline.dtype)
    assert 0.8 * large <= 16 * own <= 2 * large
