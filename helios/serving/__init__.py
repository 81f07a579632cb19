"""The web: jobs, live sessions, the studio page. The process that serves never loads PyTorch.

A front process speaks HTTP and WebSocket; one worker process per model owns a pipeline. Names here
are looked up when they are used, so that a worker does not load the web and the web no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helios.serving.config import Limits, ServeConfig
    from helios.serving.server import serve
    from helios.serving.web.security import read_keys
    from helios.serving.worker.supervisor import BrokenModelError

__all__ = ["BrokenModelError", "Limits", "ServeConfig", "read_keys", "serve"]

_WHERE = {
    "BrokenModelError": "worker.supervisor",
    "Limits": "config",
    "ServeConfig": "config",
    "read_keys": "web.security",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"helios.serving.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'helios.serving' has no attribute {name!r}")
