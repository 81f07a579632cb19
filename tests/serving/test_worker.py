"""Where a worker computes: whatever it is told, one that may take any GPU takes its own."""

from __future__ import annotations

import pytest
import torch

from helios.serving.worker.__main__ import place_of


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Three GPUs as far as anybody asks; those that were made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_workers_share_out_the_gpus(device: str, taken: list[torch.device]) -> None:
    places = [place_of(device, number) for number in range(5)]
    assert places == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert [str(place) for place in taken] == places


def test_a_gpu_that_was_named_is_taken_by_all(taken: list[torch.device]) -> None:
    assert [place_of("cuda:2", number) for number in range(3)] == ["cuda:2"] * 3
    with pytest.raises(ValueError, match="does not exist"):
        place_of("cuda:3", 0)


def test_on_the_cpu_nothing_is_chosen(taken: list[torch.device]) -> None:
    assert place_of("cpu", 7) == "cpu"
    assert taken == []


def test_without_a_gpu_any_worker_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [place_of("auto", number) for number in range(2)] == ["cpu", "cpu"]
