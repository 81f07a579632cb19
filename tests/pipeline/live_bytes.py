"""Bytes that are alive on the meta device: what a GPU would hold, counted without one."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helios.codec.decode_triton import TritonOps
from helios.kernels import Machine

HOPPER = Machine(capability=(9, 0), triton=True, flash3=True, cudnn=True)


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors on the meta device that are made inside it.

    Attributes:
        now: bytes alive.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._lose, key)

    def _lose(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def above(self, call: Callable[[], object]) -> int:
        """How many bytes more than now there are at the most while ``call`` runs."""
        before = self.peak = self.now
        call()
        return self.peak - before


def pretend_hopper(patch: pytest.MonkeyPatch) -> None:
    """Let tensors on the meta device take every path that they would take on a Hopper GPU.

    Kernels allocate what they give and do nothing. Attention keeps no scores, and convolutions give
    channels last, as the libraries do there.
    """
    from triton.runtime.jit import JITFunction

    def attention(query: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.empty_like(query)

    def convolved(x: Tensor, weight: Tensor, _: object = None, padding: Any = 0) -> Tensor:
        frames = x.shape[2] - weight.shape[2] + 1
        out = x.new_empty(len(x), frames, *x.shape[3:], len(weight))
        return out.movedim(-1, 1)

    for name, module in list(sys.modules.items()):
        if name.startswith("helios."):
            for choice in ("is_fast", "uses_triton"):
                if hasattr(module, choice):
                    patch.setattr(module, choice, lambda _: True)
    patch.setattr("helios.kernels.dispatch._State.simulated", HOPPER)
    patch.setattr("helios.model.attention.attention", attention)
    patch.setattr("helios.model.attention.attention_e4m3", lambda q, *_: attention(q[0]).bfloat16())
    patch.setattr("helios.codec.codec.fast_ops", lambda _: TritonOps())
    patch.setattr(F, "conv3d", convolved)
    patch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    patch.setattr(JITFunction, "run", lambda *_, **__: None)
