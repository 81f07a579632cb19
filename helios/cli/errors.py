"""From exceptions to exit codes and one clear line: the only place that knows both.

| code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected |
| 2 | usage, configuration, size or frame count |
| 3 | bad input: prompt, image or video |
| 4 | model or checkpoint |
| 5 | out of memory |
| 6 | file system |
| 7 | training diverged |
| 8 | training data |
| 9 | a peer process failed |
| 75 | stopped, can be resumed |
| 130, 143 | interrupted, terminated |
"""

from __future__ import annotations

import errno

from helios.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    InputError,
    PeerError,
    ResumableError,
)

__all__ = ["CommandError", "exit_code", "explain"]


# The first that fits counts, so a class stands before the one it derives from.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (InputError, 3),
    (CheckpointError, 4),
    (DivergedError, 7),
    (DataError, 8),
    (PeerError, 9),
    (ResumableError, 75),
    (OSError, 6),
    (ValueError, 2),
)


# What to do about failures that the system only names.
_HINTS = {
    errno.EEXIST: "; a file is in the way, give another name",
    errno.ENOTDIR: "; a file is in the way, give another place",
    errno.ENOSPC: "; free some space, or write to another disk",
    errno.EDQUOT: "; free some space, or write to another disk",
    errno.EACCES: "; change its permissions, or give another place",
    errno.EROFS: "; give another place",
}


class CommandError(Exception):
    """A failure that knows its own exit code: interruptions, and batches with failed lines."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = code


def exit_code(error: BaseException) -> int:
    """The exit code of ``error``."""
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        # Ours, and the usage errors of the command-line library (2).
        return own
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return 130
    if _out_of_memory(error):
        return 5
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return 1


def explain(error: BaseException) -> str:
    """What happened and what to do, on one line without control characters."""
    code = exit_code(error)
    if hasattr(error, "format_message"):
        text = str(error.format_message())
    elif code == 130 and not str(error):
        text = "interrupted; nothing was written"
    elif isinstance(error, OSError) and error.strerror:
        name = error.filename
        text = error.strerror if name is None else f"{name}: {error.strerror}"
        text += _HINTS.get(error.errno or 0, "")
    else:
        text = str(error) or type(error).__name__
    if code == 5:
        text = f"out of memory ({text}); try a smaller --size, or --dtype bfloat16"
    if code == 1:
        text = f"unexpected {type(error).__name__}: {text}; run again with --debug for details"
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # PyTorch's host allocator has no class of its own for this.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )
