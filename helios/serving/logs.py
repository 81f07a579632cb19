"""One record of JSON per line on standard error: no text of a user can forge another record."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

__all__ = ["JsonFormatter", "log"]

SECRETS = frozenset({"authorization", "key", "api_key", "ticket", "prompt"})


def log(event: str, **values: Any) -> None:
    """Write one record; prompts and keys are never part of it."""
    record = {"time": round(time.time(), 3), "pid": os.getpid(), "event": event}
    record |= {name: value for name, value in values.items() if name not in SECRETS}
    # ensure_ascii escapes every control character and line separator.
    sys.stderr.write(json.dumps(record, ensure_ascii=True, default=str) + "\n")
    sys.stderr.flush()


class JsonFormatter(logging.Formatter):
    """Records of libraries in the same form."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; the kind of an exception, never its text."""
        value: dict[str, Any] = {
            "time": round(record.created, 3),
            "pid": record.process,
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:2000],
        }
        if record.exc_info and record.exc_info[0] is not None:
            value["kind"] = record.exc_info[0].__name__
            value["detail"] = str(record.exc_info[1])[:500]
        return json.dumps(value, ensure_ascii=True)
