"""Which form of an operation runs: Triton where the device can, the plain form everywhere else.

The plain form carries the formula and the gradient. A fast form has no gradient of its own: when
one is asked for, the plain form is computed again in the backward pass, so that training and
inference share one definition.

What a device can do is asked once and written down as a :class:`Machine`; tests put another in its
place with :func:`simulated`. A feature that is missing leads to the next best form and to one line
in the log, never to an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from helios.kernels.kept import keep_compiled

__all__ = [
    "Machine",
    "gpu_number",
    "is_fast",
    "machine_of",
    "plain",
    "run",
    "say_once",
    "simulated",
    "uses_triton",
]

_log = logging.getLogger("helios.kernels")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one device can do.

    Attributes:
        capability: CUDA compute capability; none for anything but an NVIDIA GPU.
        triton: the Triton compiler can be imported.
        flash3: FlashAttention-3's forward kernels can be imported.
        cudnn: PyTorch was built with cuDNN and has it on.
    """

    capability: tuple[int, int] | None = None
    triton: bool = False
    flash3: bool = False
    cudnn: bool = False

    @property
    def runs_triton(self) -> bool:
        """Whether the fused kernels run: CUDA from Ampere on, with Triton."""
        return self.triton and self.capability is not None and self.capability >= (8, 0)

    @property
    def runs_fp8(self) -> bool:
        """Whether products of e4m3 numbers with row scales run in hardware (Ada, Hopper, later)."""
        return self.capability is not None and self.capability >= (8, 9)

    @property
    def runs_flash3(self) -> bool:
        """Whether FlashAttention-3 runs: its kernels are for Hopper."""
        return self.flash3 and self.capability is not None and self.capability[0] == 9


class _State:
    """What tests and debugging put in place of the real device; for the whole process."""

    plain_depth = 0
    simulated: Machine | None = None


def machine_of(device: torch.device) -> Machine:
    """What ``device`` can do, or what :func:`simulated` says."""
    if _State.simulated is not None:
        return _State.simulated
    if device.type != "cuda":
        return Machine()
    return _examine(gpu_number(device))


def gpu_number(device: torch.device) -> int:
    """The number of a CUDA device, which ``torch.device("cuda")`` leaves open."""
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _examine(index: int) -> Machine:
    capability = torch.cuda.get_device_capability(index)
    triton = capability >= (8, 0)
    keep_compiled()
    if not triton:
        say_once("this GPU is older than Ampere (capability 8.0): plain kernels are used")
    elif trouble := _triton_trouble(index):
        say_once(f"Triton does not run ({trouble}): plain kernels are used, see helios doctor")
        triton = False
    return Machine(
        capability=capability,
        triton=triton,
        flash3=capability[0] == 9 and _has_flash3(),
        cudnn=torch.backends.cudnn.is_available() and torch.backends.cuda.cudnn_sdp_enabled(),
    )


def _triton_trouble(index: int) -> str | None:
    """Why no kernel can be compiled and run on this device; none if one was."""
    try:
        from helios.kernels.gelu_triton import gelu

        # Only a launch tells: Triton may be there and the compiler it calls not.
        gelu(torch.zeros(1, 16, device=torch.device("cuda", index)), None)
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return None


FLASH3_MODULES = ("fa3_fwd_interface", "flash_attn_interface")
"""What FlashAttention-3 is called in its forward-only wheel, and where it was built from source."""


def _has_flash3() -> bool:
    """Whether FlashAttention-3 can be imported; one that cannot, though there, is reported."""
    for name in FLASH3_MODULES:
        try:
            import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as error:
            say_once(f"{name} cannot be loaded ({str(error).splitlines()[0][:200]})")
            continue
        return True
    return False


@cache
def say_once(line: str) -> None:
    """One line in the log, the first time it is said."""
    _log.warning(line)


@contextmanager
def plain() -> Iterator[None]:
    """Inside, only plain forms run, on every device and in every thread."""
    _State.plain_depth += 1
    try:
        yield
    finally:
        _State.plain_depth -= 1


@contextmanager
def simulated(machine: Machine) -> Iterator[None]:
    """Inside, every device is taken for ``machine``: for tests of the choices."""
    before = _State.simulated
    _State.simulated = machine
    try:
        yield
    finally:
        _State.simulated = before


def is_fast(x: Tensor) -> bool:
    """Whether libraries beyond the plain form may be called for ``x``: on CUDA, not in `plain`."""
    return x.device.type == "cuda" and not _State.plain_depth


def uses_triton(x: Tensor) -> bool:
    """Whether the Triton form of an operation on ``x`` runs."""
    # A compiler that sees the plain form fuses it into its neighbours.
    if _State.plain_depth or torch.compiler.is_compiling():
        return False
    if x.device.type != "cuda" and not _interpreted():
        return False
    return machine_of(x.device).runs_triton


def _interpreted() -> bool:
    """Whether Triton programs run in its interpreter, on the CPU."""
    return _State.simulated is not None and os.environ.get("TRITON_INTERPRET") == "1"


class _Recomputed(torch.autograd.Function):
    """The fast form forwards, the gradient of the plain form backwards."""

    @staticmethod
    def forward(ctx: Any, fast: Callable[..., Any], formula: Callable[..., Any], *args: Any) -> Any:
        ctx.formula = formula
        ctx.kept = [None if isinstance(a, Tensor) else a for a in args]
        ctx.save_for_backward(*(a if isinstance(a, Tensor) else None for a in args))
        return fast(*args)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        saved = [
            k if t is None else t.detach().requires_grad_(n)
            for t, k, n in zip(ctx.saved_tensors, ctx.kept, ctx.needs_input_grad[2:])
        ]
        with torch.enable_grad():
            made = ctx.formula(*saved)
        outs = made if isinstance(made, tuple) else (made,)
        wanted = [a for a, n in zip(saved, ctx.needs_input_grad[2:]) if n]
        pairs = [(o, g) for o, g in zip(outs, gradients) if g is not None and o.requires_grad]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True
            )
        )
        return None, None, *(next(found) if n else None for n in ctx.needs_input_grad[2:])


def run(fast: Callable[..., Any], formula: Callable[..., Any], *args: Any) -> Any:
    """``fast(*args)``, with the gradient of ``formula(*args)`` where one is wanted.

    Args:
        fast: the fast form; positional arguments only, tensors or not.
        formula: the plain form, with the same arguments and results: a tensor or a tuple of them.
        args: what both get.
    """
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return _Recomputed.apply(fast, formula, *args)
    return fast(*args)
