"""Where a model is to run: the device at hand, or one that people ask about."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from helios.kernels import gpu_number
from helios.pipeline.memory import available_memory

__all__ = ["MACHINES", "Machine", "find_machine"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a model is to run.

    Attributes:
        name: what people call it.
        kind: ``"cuda"`` or ``"cpu"``.
        memory: bytes free for the model on the device, None if unknown.
        host: bytes free in host memory, None if unknown.
        flops: dense bfloat16 operations a second at the peak, None if unknown.
        bandwidth: bytes a second of device memory.
    """

    name: str
    kind: str
    memory: float | None
    host: float | None
    flops: float | None = None
    bandwidth: float | None = None


# Memory (10^9 bytes), dense bfloat16 TFLOP/s and TB/s of the vendors' data sheets.
_SHEETS = {
    "B200": (180, 2250, 8.0),
    "H200": (141, 989, 4.8),
    "H100": (80, 989, 3.35),
    "A100": (80, 312, 2.04),
    "L40S": (48, 362, 0.864),
    "RTX 5090": (32, 209, 1.79),
    "RTX 4090": (24, 165, 1.01),
    "RTX 3090": (24, 71, 0.936),
    "RTX 5080": (16, 113, 0.96),
    "RTX 4080": (16, 97, 0.717),
    "RTX 3060": (12, 25, 0.36),
}
MACHINES = {
    name.lower().replace(" ", ""): Machine(
        name=name, kind="cuda", memory=0.97e9 * size, host=None, flops=1e12 * f, bandwidth=1e12 * b
    )
    for name, (size, f, b) in _SHEETS.items()
}
"""Devices that can be planned for without having one."""


def find_machine(device: torch.device) -> Machine:
    """The machine at hand, with the memory that is free on ``device`` now."""
    host = available_memory()
    if device.type != "cuda":
        return Machine(name="CPU", kind="cpu", memory=host, host=host)
    name = torch.cuda.get_device_name(device)
    known = next((m for m in MACHINES.values() if m.name in name), None)
    return Machine(
        name=name,
        kind="cuda",
        memory=_free(device),
        host=host,
        flops=None if known is None else known.flops,
        bandwidth=None if known is None else known.bandwidth,
    )


def _free(device: torch.device) -> float:
    """Bytes that this process may still take on a CUDA device."""
    free, whole = torch.cuda.mem_get_info(device)
    # A share that was set for the process is none of the driver's business.
    allowed = torch.cuda.get_per_process_memory_fraction(gpu_number(device)) * whole
    return min(free, allowed - torch.cuda.memory_reserved(device))
