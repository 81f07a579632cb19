"""Forward passes as CUDA graphs: recorded once per shape, replayed with one launch.

A graph repeats what was done to the very same memory, so what changes between forward passes lies
in buffers that are filled before a replay: latents, modulation rows, the text's keys and values,
the window. All graphs of one transformer share them and one memory pool, for one runs at a time
(specification "performance", design D).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Graphs"]


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphs:
    """Functions of tensors, recorded at their first call under a key and replayed afterwards.

    Not for use by two threads at once.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._recorded: dict[Hashable, _Recorded] = {}

    def __call__(
        self, key: Hashable, function: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> Tensor:
        """``function(*inputs)`` by the graph under ``key``, which is recorded if there is none.

        Args:
            key: tells functions, and shapes of inputs, apart.
            function: of tensors on one CUDA device and of nothing that changes; it must not wait
                for the device.
            inputs: of the shapes and dtypes recorded under ``key``.

        Returns:
            A tensor that the caller may keep.

        Raises:
            RuntimeError: if the function cannot be recorded.
        """
        known = self._recorded.get(key)
        if known is None:
            known = self._recorded[key] = self._record(function, inputs)
        for held, given in zip(known.inputs, inputs, strict=True):
            if held is not given:
                held.copy_(given, non_blocking=True)
        known.graph.replay()
        return known.output.clone()

    def _record(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> _Recorded:
        held = tuple(value.clone() for value in inputs)
        # Once outside of the graph: kernels are compiled, libraries make their workspaces.
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            function(*held)
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: a copy to the host, another model.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = function(*held)
        self._pool = self._pool or graph.pool()
        return _Recorded(graph, held, output)
