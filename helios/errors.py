"""The errors users meet, each with the exit code the command line gives it.

A wrong argument is a plain ``ValueError`` (exit 2), a file that cannot be written an ``OSError``
(exit 6). Only what Python has no word for gets a class here.
"""

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "DataError",
    "DivergedError",
    "InputError",
    "PeerError",
    "ResumableError",
    "UnsafeCheckpointError",
]


class InputError(ValueError):
    """A prompt, image or video that cannot be used (exit 3)."""


class CheckpointError(RuntimeError):
    """A model that is unknown, incomplete or does not fit its configuration (exit 4)."""


class UnsafeCheckpointError(CheckpointError):
    """A weight file in a format that could run code, such as pickle. It is never opened."""


class CheckpointCorruptError(CheckpointError):
    """A weight file that is truncated, overlong or unreadable."""


class DataError(RuntimeError):
    """Training data that are missing, incomplete or not what a run needs (exit 8)."""


class DivergedError(ArithmeticError):
    """A training loss or gradient that is not finite; nothing was updated with it (exit 7)."""


class ResumableError(RuntimeError):
    """Work that was told to stop and can go on from where it is (exit 75)."""


class PeerError(RuntimeError):
    """Another process of a distributed run is gone or does not answer (exit 9)."""
