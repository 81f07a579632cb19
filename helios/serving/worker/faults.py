"""Faults on purpose, for tests: only a server started with ``--test-faults`` knows them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

__all__ = ["KINDS", "Faults"]

KINDS = ("out_of_memory", "non_finite", "error", "hang", "crash", "slow", "leak")
LASTING = ("slow", "leak")


@dataclass
class Faults:
    """What is to happen in the coming steps of the engine.

    Attributes:
        enabled: nothing is ever added otherwise.
    """

    enabled: bool = False
    _waiting: list[tuple[str, int, float]] = field(default_factory=list)
    _leaked: list[bytes] = field(default_factory=list)
    _chunk: int = -1

    def add(self, kind: str, after: int, seconds: float) -> None:
        """Let ``kind`` happen at the first step of a chunk from number ``after`` on.

        ``slow`` sleeps ``seconds`` before every step from then on, ``leak`` keeps so many MiB of
        every chunk; 0 ends either.
        """
        if not self.enabled or kind not in KINDS:
            raise ValueError(f"fault {kind!r} is not possible here")
        if kind in LASTING:
            self._waiting = [fault for fault in self._waiting if fault[0] != kind]
            if seconds == 0:
                self._leaked.clear()
                return
        self._waiting.append((kind, after, seconds))

    def strike(self, chunk: int) -> None:
        """Do what is due; called before each step."""
        for fault in list(self._waiting):
            kind, after, seconds = fault
            if chunk < after:
                continue
            if kind == "leak":
                self._leak(chunk, seconds)
                continue
            if kind not in LASTING:
                self._waiting.remove(fault)
            _happen(kind, seconds)

    def _leak(self, chunk: int, size: float) -> None:
        if chunk != self._chunk:
            self._chunk = chunk
            self._leaked.append(os.urandom(int(size * (1 << 20))))


def _happen(kind: str, seconds: float) -> None:
    if kind in ("slow", "hang"):
        time.sleep(seconds)
    elif kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "out_of_memory":
        raise MemoryError("injected")
    elif kind == "non_finite":
        raise FloatingPointError("injected")
    else:
        raise RuntimeError("injected")
