"""Processes that train together: who they are and how they agree.

Under ``torchrun`` every process is one rank with one device; without it there is a single rank and
every function here returns at once. Small values that the host needs travel over gloo on the CPU,
so that agreeing never waits for a GPU; gradients and device tensors travel over NCCL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from helios.errors import PeerError

__all__ = ["World", "join", "pick_device"]

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class World:
    """One process among those that train together.

    Attributes:
        device: where this rank computes.
        rank: number of this process, from 0.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self.agree(0.0)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The largest of each value over all ranks; host numbers, over the CPU."""
        if self.size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return tuple(shared.tolist())

    def together(self, failure: OSError | None, otherwise: OSError) -> None:
        """Go on only if every rank can: a rank that raises alone leaves the others waiting.

        Raises:
            OSError: ``failure`` where there is one; ``otherwise`` on the other ranks.
        """
        (failed,) = self.agree(float(failure is not None))
        if failure is not None:
            raise failure
        if failed:
            raise otherwise

    def maximum(self, value: Tensor) -> Tensor:
        """The largest ``value`` over all ranks, in place, on the device it is on."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of ``value`` over all ranks, in place, on the device it is on."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.SUM)
            value /= self.size
        return value


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device that ``name`` means: "auto" is a GPU if there is one.

    Raises:
        ValueError: for a device that does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r} is not available: PyTorch sees no CUDA device")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"device {index} does not exist: {torch.cuda.device_count()} are here")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    return device


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or be the only one.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; under ``torchrun`` each rank takes the GPU of
            its local rank.

    Raises:
        PeerError: if a rank that others wait for has ended, or does not answer for ten minutes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(device=place)
        return
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield World(device=place, rank=dist.get_rank(), size=size)
    except RuntimeError as error:
        if not _is_about_peers(error):
            dist.destroy_process_group()
            raise
        # The group is left as it is: taking it apart would wait for the one that is gone.
        first = str(error).partition("\n")[0]
        raise PeerError(
            f"another process of this run has ended or does not answer ({first}); the reason is in "
            "its own output; go on with --resume auto"
        ) from error
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _is_about_peers(error: RuntimeError) -> bool:
    """Whether a collective failed: gloo has no class of its own for that."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)
