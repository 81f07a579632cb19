"""Answers that are files: attachments with a name of ours, whole or a range of bytes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from helios.serving.errors import ApiError

__all__ = ["send_file"]

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
PIECE = 256 * 1024


def send_file(
    request: Request,
    path: Path,
    name: str,
    kind: str,
    *,
    size: int | None = None,
    inline: bool = False,
) -> Response:
    """The file at ``path``; one range of it if that is asked for.

    Args:
        request: may have a ``Range`` header; several ranges are answered with the whole.
        path: one of ours.
        name: what the client shall call it.
        kind: its type.
        size: bytes that count, none: all there are now.
        inline: whether a browser may show it in a page.

    Raises:
        ApiError: 404 if it is gone, 416 for a range outside of it.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        raise ApiError(404, "content_not_found", "the file is gone") from None
    whole = os.fstat(file).st_size if size is None else size
    try:
        start, stop, status = _part(request.headers.get("range"), whole)
    except ApiError:
        os.close(file)
        raise
    headers = {
        "accept-ranges": "bytes",
        "content-length": str(stop - start),
        "content-disposition": f'{"inline" if inline else "attachment"}; filename="{name}"',
        "cache-control": "private, no-store",
    }
    if status == 206:
        headers["content-range"] = f"bytes {start}-{stop - 1}/{whole}"
    if request.method == "HEAD":
        os.close(file)
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_pieces(file, start, stop), status, headers, media_type=kind)


def _part(asked: str | None, whole: int) -> tuple[int, int, int]:
    """First byte, the one after the last, and the status."""
    match = _RANGE.fullmatch(asked.strip()) if asked is not None else None
    if match is None or (not match[1] and not match[2]):
        return 0, whole, 200
    if match[1]:
        start = int(match[1])
        stop = min(int(match[2]) + 1, whole) if match[2] else whole
        if match[2] and int(match[2]) < start:
            return 0, whole, 200
    else:
        start, stop = max(0, whole - int(match[2])), whole
    if start >= whole or stop <= start:
        raise ApiError(
            416,
            "invalid_range",
            "the range lies outside of the file",
            headers={"Content-Range": f"bytes */{whole}"},
        )
    return start, stop, 206


async def _pieces(file: int, start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        while start < stop:
            count = min(PIECE, stop - start)
            data = await asyncio.to_thread(os.pread, file, count, start)
            if not data:
                return
            start += len(data)
            yield data
    finally:
        os.close(file)
