"""How much memory this process uses and how much is left: read from the system, never guessed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["available_memory", "close_gaps", "resident_memory"]

_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def resident_memory(device: torch.device | None = None) -> int | None:
    """Bytes in use: allocated on a CUDA ``device``, else resident in this process.

    None where the system does not tell.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int | None:
    """Bytes of host memory that can still be used, none where the system does not tell.

    The smaller of what the machine and the process's control group have left.
    """
    machine = _meminfo("MemAvailable")
    group = _control_group()
    known = [value for value in (machine, group) if value is not None]
    return min(known) if known else None


def close_gaps() -> None:
    """Let freed device memory serve requests of any size from now on, in this process.

    Without it, what weights leave behind while they are narrowed is too small for a picture: on a
    card of 16 GB that was 2.6 GB. Users who have settings of their own for PyTorch's allocator
    keep them.
    """
    if not any(name in os.environ for name in _SETTINGS):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _control_group() -> int | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)
