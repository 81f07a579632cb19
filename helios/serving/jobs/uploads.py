"""Pictures and videos that people bring: received, read in a child process, kept as pixels."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios.serving.errors import ApiError
from helios.serving.jobs.gate import read_upload
from helios.serving.journal import Record
from helios.serving.protocol import InputReference
from helios.serving.store import is_id, new_id

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["Uploads", "clean_name"]

DATA_URL = re.compile(r"data:(image|video)/[a-z0-9.+-]{1,64};base64,", re.ASCII)
READERS = 2
"""Children that read uploads at the same time."""


def clean_name(name: str | None) -> str:
    """What a client calls its file, for showing only."""
    text = "".join(c for c in (name or "") if c.isprintable()).replace("\\", "/").rsplit("/", 1)[-1]
    return text.encode("utf-8", "ignore")[:255].decode("utf-8", "ignore")


class Uploads:
    """The uploads of a server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._readers = asyncio.Semaphore(READERS)

    async def add(self, spooled: Path, name: str | None, owner: str) -> Record:
        """Take a received file in; it is moved or removed, whatever happens.

        Raises:
            ApiError: if it cannot be used.
        """
        service = self._service
        limits = service.config.limits
        record = Record(new_id("file"), "file", owner)
        try:
            service.store.check_room(spooled.stat().st_size)
            folder = service.store.make(record.id)
            async with self._readers:
                read = await read_upload(
                    spooled,
                    folder / "pixels.raw",
                    memory=limits.gate_memory,
                    seconds=limits.gate_seconds,
                )
            spooled.rename(folder / "original")
            record.document = {
                **read,
                "filename": clean_name(name),
                "bytes": (folder / "original").stat().st_size,
                "expires": time.time() + limits.ttl,
            }
            await service.journal.put(record)
        except BaseException as error:
            service.store.remove(record.id)
            if isinstance(error, ApiError) and error.status == 400:
                service.metrics.bad_samples.labels(error.code).inc()
            raise
        finally:
            spooled.unlink(missing_ok=True)
        return record

    async def add_data_url(self, url: str, owner: str) -> Record:
        """The same for a ``data:`` URL; every other address is refused and never opened."""
        match = DATA_URL.match(url)
        if match is None:
            raise ApiError(
                400,
                "url_not_allowed",
                "addresses are not opened; upload the file, or send it as a data: URL",
                "input_reference",
            )
        try:
            data = base64.b64decode(url[match.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(
                400, "invalid_media", "the data: URL is not valid base64", "input_reference"
            ) from None
        if len(data) > self._service.config.limits.upload:
            raise ApiError(400, "media_too_large", "the media is too large", "input_reference")
        spooled = self._service.store.spool()
        await asyncio.to_thread(spooled.write_bytes, data)
        return await self.add(spooled, None, owner)

    def find(self, name: str, owner: str, param: str | None = None) -> Record:
        """The record of an upload.

        Raises:
            ApiError: 404 ``file_not_found``; 400 if it was named as a parameter.
        """
        record = self._service.journal.get(name, owner) if is_id(name, "file") else None
        if record is None:
            status = 404 if param is None else 400
            raise ApiError(status, "file_not_found", "there is no such upload", param)
        return record

    async def reference(self, asked: InputReference | None, owner: str) -> dict[str, Any] | None:
        """What a worker needs to start from ``asked``; see ``read_reference``."""
        if asked is None:
            return None
        url = asked.image_url if asked.image_url is not None else asked.video_url
        if url is not None:
            return self._pixels(await self.add_data_url(url, owner))
        if asked.file_id is not None:
            return self._pixels(self.find(asked.file_id, owner, "input_reference"))
        return self._result(asked, owner)

    def _pixels(self, record: Record) -> dict[str, Any]:
        folder = self._service.store.folder(record.id)
        return {
            "path": str(folder / "pixels.raw"),
            "kind": record.document["kind"],
            "shape": record.document["shape"],
            "name": record.id,
        }

    def _result(self, asked: InputReference, owner: str) -> dict[str, Any]:
        """A result of this server; of the right owner, and complete."""
        service = self._service
        if asked.video_id is not None:
            record = service.journal.get(asked.video_id, owner)
            if record is None or record.document["status"] != "completed":
                raise ApiError(
                    400, "video_not_found", "there is no such finished video", "input_reference"
                )
            path = service.store.folder(record.id) / "video.mp4"
            frames = record.document["frames"]
        else:
            record = service.journal.get(asked.session_id or "", owner)
            if record is None or not record.document.get("frames"):
                raise ApiError(
                    400, "session_not_found", "there is no such recording", "input_reference"
                )
            path = service.store.folder(record.id) / "recording.mp4"
            frames = record.document["frames"]
        return {"path": str(path), "kind": "video", "frames": frames, "name": record.id}
