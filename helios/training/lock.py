"""One trainer to a folder: two that write the same checkpoints would spoil both runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helios.distributed import World

__all__ = ["only_trainer"]

LOCK_NAME = ".lock"


@contextmanager
def only_trainer(out: Path, world: World) -> Iterator[None]:
    """Hold the folder of a run; the system lets go of it when the process ends, however it ends.

    Args:
        out: folder of the run, made if missing.
        world: rank 0 holds it for all.

    Raises:
        FileExistsError: on every rank, if another process trains there.
        OSError: if the folder cannot be written.
    """
    handle, failure = None, None
    if world.is_main:
        try:
            handle = _take(out)
        except OSError as error:
            failure = error
    world.together(failure, FileExistsError(f"the first rank cannot train in {out}"))
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _take(out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise FileExistsError(
            f"another process is training in {out}: wait for it, or choose another --out"
        ) from None
    return handle
