"""How a stream is made on a device, and why: the part of ``helios doctor`` above the kernels."""

from __future__ import annotations

import torch

from helios.kernels import Machine, Path, machine_of

__all__ = ["stream_paths"]


def stream_paths(device: torch.device | Machine) -> list[Path]:
    """Decoder, launches and delivery on a device in its own dtype, with default settings.

    Args:
        device: a device of this machine, or what one can do.
    """
    machine = device if isinstance(device, Machine) else machine_of(device)
    if machine.capability is None:
        why = "no CUDA device"
        return [
            Path(operation="decoder", form="plain, one pass a chunk", why=why),
            Path(operation="launches", form="one by one", why=why),
            Path(operation="frames to the host", form="in line", why=why),
        ]
    return [
        _decoder(machine),
        Path(
            operation="launches",
            form="CUDA graphs, one a scale",
            why="the shapes of a stream do not change; one by one if blocks come from the host",
        ),
        Path(
            operation="frames to the host",
            form="a stream and pinned memory beside the next chunk",
            why="a session, which takes controls between chunks, delivers in line",
        ),
    ]


def _decoder(machine: Machine) -> Path:
    major, minor = machine.capability or (0, 0)
    capability = f"capability {major}.{minor}"
    if machine.runs_triton:
        form = "one pass a chunk, fused between convolutions"
        return Path(operation="decoder", form=form, why=capability)
    why = "Triton is not installed: pip install 'helios-video[cuda]'"
    if (major, minor) < (8, 0):
        why = f"{capability}; Triton kernels need 8.0 (Ampere)"
    return Path(operation="decoder", form="plain, one pass a chunk", why=why)
