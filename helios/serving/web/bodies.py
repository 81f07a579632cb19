"""Bodies of requests: JSON read strictly, multipart received to disk within bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from helios.serving.dialects import put_nested
from helios.serving.errors import ApiError, from_validation
from helios.serving.service import Service
from helios.serving.strict_json import parse_object

__all__ = ["Form", "checked", "read_form", "read_json"]

MOST_PARTS = 64
MOST_FIELD = 64 * 1024
MOST_REFERENCE = 32 << 20
"""Of a field that may hold a ``data:`` URL: as much as a JSON body may be."""
MOST_BOUNDARY = 200
LARGE_JSON = 256 * 1024
T = TypeVar("T", bound=BaseModel)

_WHOLE = frozenset({"num_frames", "width", "height", "fps", "seed", "transition_chunks"})
_BROKEN = frozenset({"guidance_scale", "motion", "scale"})
_REFERENCES = frozenset({"input_reference", "image_reference", "video_reference"})
_JSON = _REFERENCES | {
    "steps", "num_inference_steps", "pyramid_num_inference_steps_list", "loras", "lora", "video",
    "anti_drift", "amplify_first_chunk", "is_amplify_first_chunk", "extra_params",
}  # fmt: skip


@dataclass
class Form:
    """A multipart body that was received.

    Attributes:
        fields: texts by name.
        nested: names with brackets and their texts, in their order; a name may be there often.
        files: for each file its field, what the client called it, and where it lies.
    """

    fields: dict[str, str] = field(default_factory=dict)
    nested: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, tuple[str, Path]] = field(default_factory=dict)


async def read_json(request: Request, kind: type[T]) -> T:
    """The body as ``kind``.

    Raises:
        ApiError: 400, saying what is wrong with it; 415 for another content type.
    """
    content = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if content != "application/json":
        raise ApiError(415, "unsupported_content_type", "send application/json")
    body = await request.body()
    if len(body) > LARGE_JSON:
        value = await asyncio.to_thread(parse_object, body)
    else:
        value = parse_object(body)
    return checked(value, kind)


def checked(value: dict[str, Any], kind: type[T]) -> T:
    """``value`` as ``kind``.

    Raises:
        ApiError: 400.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise from_validation(error) from None


def form_values(fields: dict[str, str], nested: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """Texts of a form as JSON would have them; what is no number stays text and is refused.

    Args:
        fields: texts by name.
        nested: names such as ``steps[]`` or ``video[id]``, as the official client writes them.
    """
    values = {name: _plain(name, text) for name, text in fields.items()}
    for name, text in nested:
        words = [word for word in name.replace("]", "").split("[") if word]
        if not put_nested(values, name, _plain(words[-1] if words else "", text)):
            values[name] = text
    return values


def _plain(name: str, text: str) -> Any:
    """The value of the field ``name``, the text itself if it is not of its kind."""
    try:
        if name in _WHOLE and text.isascii() and text.lstrip("-").isdigit():
            return int(text[:40])
        if name in _BROKEN:
            return float(text[:40])
        if name in _JSON:
            return json.loads(text)
    except (ValueError, RecursionError):
        pass
    return text


@asynccontextmanager
async def read_form(request: Request, service: Service) -> AsyncIterator[Form]:
    """The multipart body; files that nobody took are removed at the end.

    Raises:
        ApiError: 400 for a malformed one, 413 for one that is too large.
    """
    kind, options = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= MOST_BOUNDARY:
        raise ApiError(415, "unsupported_content_type", "send multipart/form-data with a boundary")
    receiver = _Receiver(service)
    parser = MultipartParser(boundary, receiver.callbacks)  # type: ignore[arg-type]
    try:
        async for data in request.stream():
            # A disk write may take its time; nobody else shall wait for it.
            await asyncio.to_thread(parser.write, data)
        if not receiver.ended:
            raise ApiError(400, "invalid_multipart", "the multipart body is cut short")
        yield receiver.form
    except (FormParserError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ApiError):
            raise
        raise ApiError(400, "invalid_multipart", "the multipart body is malformed") from None
    finally:
        receiver.close()


class _Receiver:
    """Takes apart a multipart body as it comes."""

    def __init__(self, service: Service) -> None:
        self.form = Form()
        self.ended = False
        self._service = service
        self._parts = 0
        self._header: tuple[bytearray, bytearray] = bytearray(), bytearray()
        self._headers: dict[str, bytes] = {}
        self._name = ""
        self._text = bytearray()
        self._file: Any = None
        self._size = 0
        self.callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._start,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ApiError(400, "invalid_multipart", f"at most {MOST_PARTS} parts are read")
        self._headers = {}
        self._text.clear()
        self._size = 0

    def _header_end(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").lower()] = bytes(value)
        self._header = bytearray(), bytearray()

    def _start(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8")
        if self._name in self.form.fields or self._name in self.form.files:
            raise ApiError(400, "invalid_multipart", "a field is given twice", self._name[:100])
        if b"filename" in options:
            path = self._service.store.spool()
            self.form.files[self._name] = options[b"filename"].decode("utf-8", "ignore"), path
            self._file = path.open("xb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is not None:
            if self._size > self._service.config.limits.upload:
                raise ApiError(413, "body_too_large", "the file is too large", self._name[:100])
            self._file.write(data[start:end])
            return
        large = self._name.partition("[")[0] in _REFERENCES
        if self._size > (MOST_REFERENCE if large else MOST_FIELD):
            raise ApiError(400, "invalid_multipart", "a field is too long", self._name[:100])
        self._text.extend(data[start:end])

    def _part_end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        elif "[" in self._name:
            self.form.nested.append((self._name, self._text.decode("utf-8")))
        else:
            self.form.fields[self._name] = self._text.decode("utf-8")

    def _end(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Remove what nobody took."""
        if self._file is not None:
            self._file.close()
        for _, path in self.form.files.values():
            path.unlink(missing_ok=True)
