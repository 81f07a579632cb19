"""What doctor says about streams, for machines that are not here."""

from __future__ import annotations

import pytest
import torch

from helios.kernels import Machine
from helios.pipeline import stream_paths


def forms(machine: Machine) -> dict[str, str]:
    return {path.operation: path.form for path in stream_paths(machine)}


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_from_ampere_on_everything_is_used(capability: tuple[int, int]) -> None:
    found = forms(Machine(capability=capability, triton=True))
    assert found["decoder"] == "one pass a chunk, fused between convolutions"
    assert found["launches"].startswith("CUDA graphs")
    assert "beside" in found["frames to the host"]


def test_what_is_missing_has_a_reason_and_a_remedy() -> None:
    no_triton = stream_paths(Machine(capability=(9, 0)))[0]
    assert (no_triton.form, "pip install" in no_triton.why) == ("plain, one pass a chunk", True)
    old = stream_paths(Machine(capability=(7, 5), triton=True))[0]
    assert (old.form, "Ampere" in old.why) == ("plain, one pass a chunk", True)


def test_a_cpu() -> None:
    found = forms(Machine())
    assert found == {path.operation: path.form for path in stream_paths(torch.device("cpu"))}
    assert found["launches"] == "one by one"
