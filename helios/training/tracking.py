"""What a run tells: lines on the console, records in a file, curves in TensorBoard."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

__all__ = ["Averages", "Tracker"]

LOG_NAME = "log.jsonl"
ORDER = ("loss", "progress", "lr", "samples_per_second")


class Averages:
    """Running means of device scalars; the host waits for the device only when it reads."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Take the scalars of one step."""
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class Tracker:
    """Writes the records of a run; on other ranks than the first it is silent.

    Args:
        out: the run's folder.
        active: whether this rank speaks.
        resumed_at: step that the run goes on from; records after it are dropped.
    """

    def __init__(self, out: Path, *, active: bool, resumed_at: int = 0) -> None:
        self._active = active
        self._file: Any = None
        self._board: Any = None
        if not active:
            return
        out.mkdir(parents=True, exist_ok=True)
        path = out / LOG_NAME
        kept = _records_until(path, resumed_at) if resumed_at else []
        path.write_text("".join(kept), "utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = _open_board(out / "tensorboard", resumed_at)
        if self._board is None:
            self.say("tensorboard is not installed: records go to the console and log.jsonl only")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in (self._file, self._board):
            if writer is not None:
                writer.close()

    def say(self, line: str) -> None:
        """A line on the console (standard error)."""
        if self._active:
            print(line, file=sys.stderr, flush=True)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, everywhere."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        names = [name for name in ORDER if name in values]
        names += [name for name in values if name not in ORDER]
        self.say(f"step {step:6d}  " + "  ".join(f"{n} {values[n]:.4g}" for n in names))


def _records_until(path: Path, step: int) -> list[str]:
    """Whole lines of an earlier log up to ``step``."""
    kept = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a crash
    return kept


def _open_board(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
