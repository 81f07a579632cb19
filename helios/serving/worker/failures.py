"""What a worker says when something goes wrong: a code, a line of ours, and more in the log."""

from __future__ import annotations

import warnings

from helios.errors import CheckpointError, InputError
from helios.serving.logs import log

__all__ = ["Collected", "failure_of", "log_failure"]


def failure_of(error: BaseException) -> tuple[str, str]:
    """Code and message for a client; what a library says stays in the log."""
    code = getattr(error, "code", None)
    if isinstance(error, ValueError) and isinstance(code, str):
        return code, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory", "there was not enough memory; try a smaller size"
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return "out_of_memory", "there was not enough memory; try a smaller size"
    if isinstance(error, FloatingPointError):
        return "non_finite_output", "the model gave values that are not finite"
    if isinstance(error, InputError):
        return "invalid_prompt", str(error)
    if isinstance(error, CheckpointError):
        return "invalid_session", "the saved session does not fit this server's model"
    if isinstance(error, ValueError):
        return "invalid_value", str(error)
    if isinstance(error, KeyError):
        return "no_session", "the stream is gone"
    if isinstance(error, OSError):
        return "insufficient_storage", "the file could not be written or read"
    return "internal_error", "something went wrong; the server's log knows more"


def log_failure(error: BaseException) -> None:
    """What nobody outside shall see."""
    log("worker_error", kind=type(error).__name__, detail=str(error)[:500])


class Collected:
    """Collects warnings of ours that are raised in the block; one thread only."""

    def __init__(self, into: list[str]) -> None:
        self._into = into

    def __enter__(self) -> None:
        self._catch = warnings.catch_warnings(record=True)
        self._caught = self._catch.__enter__()
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)

    def __exit__(self, *_: object) -> None:
        self._catch.__exit__(None, None, None)
        texts = [str(w.message) for w in self._caught or [] if "helios" in w.filename]
        self._into.extend(dict.fromkeys(texts))
