"""JSON as an untrusted sender may not bend it (specification "reliability", requirement 19)."""

from __future__ import annotations

import json
from typing import Any

from helios.serving.errors import ApiError

__all__ = ["parse_object"]

MOST_DEPTH = 32
MOST_DIGITS = 32


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object in ``data``.

    Raises:
        ApiError: ``invalid_json`` for other encodings, bytes after it, a key given twice, more
            than 32 levels, numbers of more than 32 characters, NaN, or anything but an object.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_int,
            parse_float=_float,
        )
    except (ValueError, RecursionError):
        raise ApiError(400, "invalid_json", "the body is not one valid JSON object") from None
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    return value


def _check_depth(text: str) -> None:
    depth, quoted, escaped = 0, False, False
    if text.count("[") + text.count("{") <= MOST_DEPTH:
        return
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise ValueError("too deep")
        elif character in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("a number is too long")
    return int(text)


def _float(text: str) -> float:
    if len(text) > MOST_DIGITS:
        raise ValueError("a number is too long")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value
