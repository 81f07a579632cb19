"""What the OpenAPI document says of bodies: read strictly by hand, so described by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

__all__ = ["ERRORS", "described", "file_body"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_TEXTS = {
    "400": "What is wrong with the request",
    "401": "No valid key",
    "403": "Not allowed from there",
    "404": "Not there",
    "405": "Method not allowed",
    "409": "Not in this state",
    "413": "Too large",
    "415": "Another content type",
    "416": "Range outside of the file",
    "429": "Too much at once",
    "503": "Not ready, or stopping",
    "507": "No room",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    int(status): {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in _TEXTS.items()
}


def described(kind: type[BaseModel], *, multipart: bool = False) -> dict[str, Any]:
    """Arguments of a route whose body is ``kind``."""
    schema = _inlined(kind.model_json_schema())
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if multipart:
        form = {
            "type": "object",
            "required": ["prompt"],
            "properties": {
                "prompt": {"type": "string"},
                "input_reference": {"type": "string", "format": "binary"},
            },
        }
        content["multipart/form-data"] = {"schema": form}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without references, so that it can stand anywhere."""
    definitions = schema.pop("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return walk(definitions[value["$ref"].rsplit("/", 1)[-1]])
            return {name: walk(item) for name, item in value.items() if name != "discriminator"}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return value

    result: dict[str, Any] = walk(schema)
    return result


def file_body() -> dict[str, Any]:
    """Arguments of a route whose body is one uploaded file."""
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
    content = {"multipart/form-data": {"schema": form}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}}
