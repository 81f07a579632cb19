"""Threads for what would hold up the event loop: disk, parsing, packing.

Both pools that the front process would otherwise have grow when they are first used at once, up
to ``cores + 4`` threads of asyncio and 40 of AnyIO, and never shrink while nothing is asked. So a
server that is loaded once looks as if it leaked, and a thread that the system refuses would fail
whatever job happened to need it.

glibc gives every thread a heap of its own, and each fills with what the largest read left in it:
1.4 MiB a minute under load, over many minutes. All of them share one here; it grew 0.2.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from anyio.to_thread import current_default_thread_limiter

__all__ = ["THREADS", "make_threads"]

THREADS = 8
"""For ``asyncio.to_thread``: the tasks are reads and writes of a few hundred kilobytes."""
PAGE_THREADS = 2
"""For AnyIO, which reads nothing but the files of the page here."""
_M_ARENA_MAX = -8


def make_threads() -> None:
    """Give the running event loop its threads, all of them now.

    Raises:
        RuntimeError: if the system gives no more threads.
    """
    _share_heap()
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="disk")
    together = threading.Barrier(THREADS + 1)
    try:
        for _ in range(THREADS):
            pool.submit(together.wait)  # none is free for the next, so each makes a thread
    except RuntimeError:
        together.abort()  # those that are there would wait for ever
        raise
    together.wait()
    asyncio.get_running_loop().set_default_executor(pool)
    current_default_thread_limiter().total_tokens = PAGE_THREADS


def _share_heap() -> None:
    """One heap for all threads (glibc); Python's lock lets them take turns anyway."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
