"""What a start costs: the same process begun twice, first with nothing compiled, then again."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["measure_starts", "starts_markdown"]

_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
"""Where compilers keep their work."""
_STAGES = ("forward 1/4", "forward 1/2", "forward full", "decode")


def measure_starts(asked: Mapping[str, Any], count: int = 2) -> list[dict[str, Any]]:
    """``count`` starts one after the other, sharing a cache that is empty before the first.

    Args:
        asked: model, device, dtype, size, layers, seed and tune_decoder of ``helios bench``.
        count: how many.

    Raises:
        RuntimeError: with the last line of a start that failed.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="helios-starts-") as folder:
        places = {name: str(Path(folder) / name.lower()) for name in _CACHES}
        command = [sys.executable, "-m", "helios.cli.starts", json.dumps(dict(asked))]
        for _ in range(count):
            began = time.perf_counter()
            done = subprocess.run(
                command, env={**os.environ, **places}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise RuntimeError(f"a start failed: {lines[-1]}")
            figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            figures["process"] = time.perf_counter() - began
            figures["kernels"] = len(list(Path(places[_CACHES[0]]).rglob("*.cubin")))
            found.append(figures)
    for earlier, later in reversed(list(itertools.pairwise(found))):
        later["kernels"] -= earlier["kernels"]
    return found


def starts_markdown(starts: Sequence[Mapping[str, Any]]) -> str:
    """The starts side by side, in seconds."""
    names = [f"start {number}" for number in range(1, len(starts) + 1)]
    rows: list[tuple[str, list[str]]] = [
        ("imports", [f"{one['imports']:.2f}" for one in starts]),
        ("load, or make random weights", [f"{one['load']:.2f}" for one in starts]),
    ]
    for stage in _STAGES:
        first = [one["first"][stage] - one["again"][stage] for one in starts]
        rows.append((f"first {stage}, above a later one", [f"{value:.2f}" for value in first]))
    rows += [
        ("kernels compiled", [str(one["kernels"]) for one in starts]),
        ("**ready for a request**", [f"**{one['ready']:.2f}**" for one in starts]),
        ("then: request to first frame", [f"{one['first_frame']:.2f}" for one in starts]),
        ("request to first chunk", [f"{one['first_chunk']:.2f}" for one in starts]),
        ("a later chunk", [f"{one['later_chunk']:.2f}" for one in starts]),
    ]
    lines = ["## Starts (seconds)", ""]
    lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    lines += ["", "Compilers' caches were empty before the first start. Steps (1,1,1).", ""]
    return "\n".join(lines)


def _start(asked: Mapping[str, Any]) -> dict[str, Any]:
    """One start of this process, from before its imports to its third chunk."""
    began = time.perf_counter()
    import torch

    from helios.pipeline import pick_device, pick_dtype

    imported = time.perf_counter()
    # Who makes videos does without these, so they do not count.
    from helios.cli.subjects import subject_of
    from helios.evaluation import own_arms

    resumed = time.perf_counter()
    device = pick_device(asked["device"])
    dtype = pick_dtype(asked["dtype"], device)
    subject = subject_of(
        asked["model"], device, dtype, asked["size"], asked["layers"], asked["seed"]
    )
    arm = own_arms(subject, asked["tune_decoder"])[0]()
    loaded = _now(device)
    # Timesteps are of no matter for time; the coarsest scale comes first, as in a request.
    calls: list[Callable[[], object]] = [
        lambda n=n: arm.velocity(subject.noisy(n), subject.told(500))  # type: ignore[misc]
        for n in (2, 1, 0)
    ]
    calls.append(lambda: arm.decode(subject.latents))
    first, again = {}, {}
    with torch.no_grad():
        for stage, call in zip(_STAGES, calls, strict=True):
            first[stage], again[stage] = (_seconds(call, device) for _ in range(2))
    ready = _now(device) - sum(again.values())
    visit = arm.run((1, 1, 1), 3, asked["seed"])
    return {
        "imports": imported - began,
        "load": loaded - resumed,
        "first": first,
        "again": again,
        "ready": ready - resumed + imported - began,
        "first_frame": visit.first_frame,
        "first_chunk": visit.first,
        "later_chunk": min(visit.seconds),
    }


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    began = _now(device)
    call()
    return _now(device) - began


def _now(device: torch.device) -> float:
    """The time when the device has done all it was told."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    print(json.dumps(_start(json.loads(sys.argv[1]))))
