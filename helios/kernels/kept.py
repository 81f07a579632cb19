"""Where compiled kernels are kept from one start to the next.

Triton keeps what it has compiled in a folder, by default in the user's home. Here it lies under the
cache folder of this package, so that one volume or one copy brings it along, and a home that cannot
be written to does not take the kernels away.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["keep_compiled"]

_VARIABLE = "TRITON_CACHE_DIR"


def keep_compiled() -> Path | None:
    """Tell Triton where to keep kernels, unless the user has told it; the folder, if there is one.

    The folder is ``$HELIOS_CACHE/triton``, or in ``$XDG_CACHE_HOME/helios``, or in
    ``~/.cache/helios``; one of the temporary ones if none can be written to.
    """
    if _VARIABLE in os.environ:
        return Path(os.environ[_VARIABLE])
    for folder in _places():
        if _writable(folder):
            os.environ[_VARIABLE] = str(folder)
            return folder
    return None


def _places() -> Iterator[Path]:
    own = os.environ.get("HELIOS_CACHE")
    if own:
        yield Path(own).expanduser() / "triton"
    else:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        with suppress(RuntimeError):
            yield Path(home).expanduser() / "helios" / "triton"
    yield Path(tempfile.gettempdir()) / f"helios-{_user()}" / "triton"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, which belongs to this user if it was there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Compiled code is loaded from here: nobody else may have laid it out.
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
