"""A session as one file: a ZIP without compression of its states, its recording and a document.

Reading one believes nothing: names, sizes and kinds are checked before a byte is unpacked, states
are safetensors that the worker checks again, and the recording goes through the media gate.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from helios.serving.errors import ApiError
from helios.serving.journal import Record
from helios.serving.live.recording import INDEX, MEDIA, Recording
from helios.serving.live.session import states_in
from helios.serving.protocol import Lora, Shots
from helios.serving.store import new_id
from helios.serving.strict_json import parse_object

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["read_archive", "write_archive"]

SCHEMA = 1
DOCUMENT = "session.json"
_STATE = re.compile(r"state-[0-9]{7}\.safetensors", re.ASCII)
MOST_FILES = 128
MOST_DOCUMENT = 1 << 20


class _Document(BaseModel):
    """What ``session.json`` may say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: int
    model: str
    loras: dict[str, float]
    prompts: Shots
    settings: dict[str, Any]
    name: str | None
    mime: str | None = None


def write_archive(service: Service, record: Record) -> Path:
    """A new file with everything of a session; whoever asked removes it."""
    folder = service.store.folder(record.id)
    document = record.document
    value = {
        "schema_version": SCHEMA,
        "model": document["model"].rstrip("/").rsplit("/", 1)[-1],
        "loras": document["loras"],
        "prompts": document["prompts"],
        "settings": document["settings"],
        "name": document.get("name"),
    }
    path = service.store.spool()
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        archive.writestr(DOCUMENT, json.dumps(value, ensure_ascii=True))
        for chunk in states_in(folder):
            name = f"state-{chunk:07d}.safetensors"
            archive.write(folder / name, name)
        for name in (MEDIA, INDEX):
            archive.write(folder / name, name)
    return path


async def read_archive(service: Service, path: Path, owner: str) -> Record:
    """A new session out of the file at ``path``.

    Raises:
        ApiError: 400 ``invalid_session`` if it is none.
    """
    service.store.check_room(path.stat().st_size)
    record = Record(new_id("session"), "session", owner)
    folder = service.store.make(record.id)
    try:
        document = await asyncio.to_thread(_unpack, path, folder)
        recording = await asyncio.to_thread(Recording.open, folder)
        worker = service.supervisor.of_model(document.model)[0]
        record.document = {
            "model": worker.model,
            "loras": document.loras,
            "prompts": [list(part) for part in document.prompts],
            "reference": None,
            "settings": document.settings,
            "name": document.name,
            "chunks": len(recording),
            "frames": recording.frames,
            "updated": time.time(),
            "expires": time.time() + service.config.limits.ttl,
        }
        await service.journal.put(record)
    except BaseException as error:
        service.store.remove(record.id)
        if isinstance(error, (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError)):
            raise _refusal() from None
        raise
    return record


def _refusal() -> ApiError:
    return ApiError(400, "invalid_session", "the file is not a session of Helios", "file")


def _unpack(path: Path, folder: Path) -> _Document:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        wanted = {DOCUMENT, MEDIA, INDEX}
        good = (
            len(set(names)) == len(names) <= MOST_FILES
            and wanted <= set(names)
            and all(name in wanted or _STATE.fullmatch(name) for name in names)
            and all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            and sum(entry.file_size for entry in entries) <= path.stat().st_size
            and archive.getinfo(DOCUMENT).file_size <= MOST_DOCUMENT
        )
        if not good:
            raise _refusal()
        try:
            document = _Document.model_validate(parse_object(archive.read(DOCUMENT)))
        except (ValidationError, ApiError):
            raise _refusal() from None
        if document.schema_version != SCHEMA:
            raise _refusal()
        for lora, scale in document.loras.items():
            Lora(name=lora, scale=scale)
        for name in names:
            if name != DOCUMENT:
                with archive.open(name) as source, (folder / name).open("xb") as target:
                    shutil.copyfileobj(source, target)
    return document
