"""Blocks whose matrices stay in host memory and come to the device for every pass.

Two blocks' worth of device memory take turns: while one block runs, the matrices of the next are on
their way, on a stream of their own. On a card that computes a block for longer than its matrices
travel this costs nothing but host memory. Source: specification "performance", section 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helios.model.quantised import MATRICES
from helios.model.transformer import HeliosTransformer

__all__ = ["Guest", "Home", "is_streamed", "spread", "stream_blocks"]

_PIECE = 2**30
"""Bytes of host memory taken at a time; a power of two."""
_ALIGNMENT = 64
_MATRIX = re.compile(rf"blocks\.(\d+)\.(?:{'|'.join(map(re.escape, MATRICES))})\.(?:weight|values)")


class Guest:
    """A module whose tensors are elsewhere for a time, and can be given back.

    Args:
        module: whose parameters and buffers.
        wanted: which of them, by their name in the module.
    """

    def __init__(self, module: nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> None:
        self._places: list[tuple[nn.Module, str]] = []
        self.home: list[Tensor] = []
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            if wanted(path):
                owner, _, name = path.rpartition(".")
                self._places.append((module.get_submodule(owner), name))
                self.home.append(tensor)

    def dress(self, tensors: Iterable[Tensor]) -> None:
        """Put others in the place of its tensors, for inference."""
        for (owner, name), own, tensor in zip(self._places, self.home, tensors, strict=True):
            value = nn.Parameter(tensor, requires_grad=False)
            setattr(owner, name, value if isinstance(own, nn.Parameter) else tensor)

    def undress(self) -> None:
        """Give it its own tensors back."""
        for (owner, name), own in zip(self._places, self.home, strict=True):
            setattr(owner, name, own)


def spread(blocks: int, away: int) -> frozenset[int]:
    """Numbers of ``away`` out of so many blocks, as far from each other as can be."""
    return frozenset(int((place + 0.5) * blocks / away) for place in range(away))


def is_streamed(name: str, numbers: Collection[int]) -> bool:
    """Whether the tensor ``name`` of a transformer is a matrix of one of these blocks."""
    found = _MATRIX.fullmatch(name)
    return found is not None and int(found.group(1)) in numbers


class Home:
    """Host memory from which a device can read by itself.

    PyTorch rounds every pinned allocation up to a power of two, which would be nearly twice a
    matrix of 5120 by 13824. So it is taken in large pieces, and tensors lie in them side by side.

    Args:
        device: what will read.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._pinned = torch.device(device).type == "cuda"
        self._rest = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of ``tensor`` in that memory."""
        if len(self._rest) < tensor.nbytes:
            size = max(tensor.nbytes, _PIECE if self._pinned else 0)
            self._rest = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        room = self._rest[: tensor.nbytes]
        self._rest = self._rest[-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT :]
        return room.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def stream_blocks(
    model: HeliosTransformer, device: torch.device | str, numbers: Collection[int]
) -> None:
    """Let the matrices of the blocks ``numbers``, which are in host memory, come to ``device``.

    Keys and values of the text are read apart from the passes, so their weights stay on the device.
    """
    order = sorted(numbers)
    guests = [
        Guest(model.blocks[n], lambda name, n=n: is_streamed(f"blocks.{n}.{name}", (n,)))  # type: ignore[misc]
        for n in order
    ]
    ring = _Ring(guests, torch.device(device))
    for place, number in enumerate(order):
        ring.receive(model.blocks[number], place)


@dataclass(eq=False)
class _Slot:
    """Room for the matrices of one block: whose they are, when they are there, when it is free."""

    tensors: list[Tensor]
    holds: int | None = None
    ready: torch.cuda.Event | None = None
    free: torch.cuda.Event | None = None


class _Ring:
    """Guests that come in order, round after round, by turns into two slots."""

    def __init__(self, guests: Sequence[Guest], device: torch.device) -> None:
        self._guests, self._device = guests, device
        room = [torch.empty_like(own, device=device) for own in guests[0].home]
        self._slots = [_Slot(room)]
        if len(guests) > 1:
            self._slots.append(_Slot([torch.empty_like(tensor) for tensor in room]))
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def receive(self, module: nn.Module, place: int) -> None:
        """From now on ``module`` is the guest number ``place`` whenever it runs."""

        def come(*_: Any) -> None:
            self._come(place)

        def leave(*_: Any) -> None:
            self._leave(place)

        module.register_forward_pre_hook(come)
        module.register_forward_hook(leave, always_call=True)

    def _come(self, place: int) -> None:
        slot = self._fetched(place)
        if slot.ready is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.ready)
        self._guests[place].dress(slot.tensors)
        following = (place + 1) % len(self._guests)
        if self._slot(following) is not slot:
            self._fetched(following)

    def _slot(self, place: int) -> _Slot:
        return self._slots[place % len(self._slots)]

    def _fetched(self, place: int) -> _Slot:
        """The slot that holds, or will hold, the matrices of a guest."""
        slot = self._slot(place)
        if slot.holds == place:
            return slot
        slot.holds = place
        if self._beside is None:
            self._copy(place, slot)
            return slot
        with torch.cuda.stream(self._beside):
            # The block that had the room may not have run yet: only the host is that far.
            if slot.free is not None:
                self._beside.wait_event(slot.free)
            self._copy(place, slot)
            slot.ready = self._beside.record_event()
        return slot

    def _copy(self, place: int, slot: _Slot) -> None:
        for room, own in zip(slot.tensors, self._guests[place].home, strict=True):
            room.copy_(own.detach(), non_blocking=True)

    def _leave(self, place: int) -> None:
        self._guests[place].undress()
        if self._beside is not None:
            self._slot(place).free = torch.cuda.current_stream(self._device).record_event()
