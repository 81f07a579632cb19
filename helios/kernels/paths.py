"""Which form of every operation a device gets, and why: what ``helios doctor`` prints."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from helios.kernels.attention import FLASH3_FROM, Backend, choose
from helios.kernels.dispatch import Machine, machine_of

__all__ = ["Path", "paths"]

_NAMES: dict[Backend, str] = {
    "plain": "PyTorch's own choice",
    "flash": "PyTorch's flash attention",
    "cudnn": "cuDNN",
    "flash3": "FlashAttention-3",
}
_CHANNELS = 128


@dataclass(frozen=True, kw_only=True)
class Path:
    """The form of one operation.

    Attributes:
        operation: what is computed.
        form: which implementation is used.
        why: the reason, and what would make it faster if something would.
    """

    operation: str
    form: str
    why: str


def paths(device: torch.device | Machine) -> list[Path]:
    """The form of every operation on a device in bfloat16, at the published head size.

    Args:
        device: a device of this machine, or what one can do.
    """
    machine = device if isinstance(device, Machine) else machine_of(device)
    return [
        _fused(machine),
        _attention(machine, FLASH3_FROM - 1, f"attention, below {FLASH3_FROM} keys"),
        _attention(machine, FLASH3_FROM, f"attention, from {FLASH3_FROM} keys"),
        _products(machine),
        _attention_e4m3(machine),
    ]


def _fused(machine: Machine) -> Path:
    if machine.runs_triton:
        return Path(operation="norms, rotation, GELU", form="Triton", why=_capability(machine))
    if machine.capability is None:
        why = "no CUDA device"
    elif machine.capability < (8, 0):
        why = f"{_capability(machine)}; Triton kernels need 8.0 (Ampere)"
    else:
        why = "Triton is not installed or does not run: pip install 'helios-video[cuda]'"
    return Path(operation="norms, rotation, GELU", form="plain", why=why)


def _attention(machine: Machine, keys: int, operation: str) -> Path:
    backend = choose(machine, torch.bfloat16, _CHANNELS, keys)
    if machine.capability is None:
        why = "no CUDA device"
    elif backend == "flash3" or machine.capability[0] != 9 or keys < FLASH3_FROM:
        why = _capability(machine)
    else:
        why = "FlashAttention-3 is not installed: pip install fa3-fwd"
    return Path(operation=operation, form=_NAMES[backend], why=why)


def _products(machine: Machine) -> Path:
    if machine.runs_fp8:
        return Path(operation="e4m3 products", form="in hardware", why=_capability(machine))
    why = "no CUDA device" if machine.capability is None else f"{_capability(machine)}; from 8.9 on"
    return Path(operation="e4m3 products", form="widened, slow", why=why)


def _attention_e4m3(machine: Machine) -> Path:
    name = "e4m3 attention"
    if machine.runs_flash3:
        return Path(operation=name, form=_NAMES["flash3"], why=_capability(machine))
    if machine.capability is None:
        why = "no CUDA device"
    elif machine.capability[0] != 9:
        why = f"{_capability(machine)}; FlashAttention-3 needs 9.0 (Hopper)"
    else:
        why = "FlashAttention-3 is not installed: pip install fa3-fwd"
    return Path(operation=name, form="widened, slow", why=why)


def _capability(machine: Machine) -> str:
    major, minor = machine.capability or (0, 0)
    return f"capability {major}.{minor}"
