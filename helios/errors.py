"""The errors users meet, each with the exit code the command line gives it.

A wrong argument is a plain ``ValueError`` (exit 2), a file that cannot be written an ``OSError``
(exit 6). Only what Python has no word for gets a class here.
"""

__all__ = ["CheckpointCorruptError", "CheckpointError", "InputError", "UnsafeCheckpointError"]


class InputError(ValueError):
    """A prompt, image or video that cannot be used (exit 3)."""


class CheckpointError(RuntimeError):
    """A model that is unknown, incomplete or does not fit its configuration (exit 4)."""


class UnsafeCheckpointError(CheckpointError):
    """A weight file in a format that could run code, such as pickle. It is never opened."""


class CheckpointCorruptError(CheckpointError):
    """A weight file that is truncated, overlong or unreadable."""
