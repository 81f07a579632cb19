"""The live messages of vLLM-Omni, for clients that were written for it.

Such a client says so with ``"format": "m4s"`` in its ``session.start`` (specification "ecosystem",
3.4); from then on it hears its own names, and nothing that it does not know.
"""

from __future__ import annotations

from typing import Any

from helios.serving.dialects import translated
from helios.serving.errors import ApiError

__all__ = ["Omni", "is_omni"]

FORMAT = "m4s"


def is_omni(message: dict[str, Any]) -> bool:
    """Whether a message of a client begins a session in this dialect."""
    return message.get("type") == "session.start" and "format" in message


class Omni:
    """One connection's translation, both ways; it remembers what a later message needs."""

    def __init__(self) -> None:
        self._header = b""
        self._session: str | None = None
        self._sent = 0

    def inwards(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message of the client as ours; what is wrong with it is found later, as with ours.

        Raises:
            ApiError: 400 for another format, or a field that is given twice.
        """
        if is_omni(message):
            if message["format"] != FORMAT:
                raise ApiError(400, "invalid_value", f"format must be {FORMAT}", "format")
            rest = {name: value for name, value in message.items() if name != "format"}
            try:
                found: dict[str, Any] = translated(rest)
            except ValueError as error:
                raise ApiError(400, "invalid_value", str(error)) from None
            return found
        inner = message.get("interaction")
        if message.get("type") != "session.interaction" or not isinstance(inner, dict):
            return message
        event = inner.get("event")
        if not isinstance(event, dict) or set(event) != {"prompt"}:
            raise ApiError(400, "invalid_value", "the event must be a prompt", "interaction.event")
        rest = {name: value for name, value in inner.items() if name != "event"}
        return {"type": "session.prompt", "prompt": event["prompt"], **rest}

    def outwards(
        self, kind: str, body: bytes | None, values: dict[str, Any]
    ) -> tuple[dict[str, Any], bytes | None] | None:
        """A message of ours as the client knows it, and its bytes; none if it knows none such."""
        if kind == "video.start":
            self._header, self._session = body or b"", values["session"]
            names = ("width", "height", "fps", "first_chunk")
            config = {name: values[name] for name in names}
            return self._said(kind, format=FORMAT, config=config), None
        if kind == "video.chunk":
            data, self._header = self._header + (body or b""), b""
            number, self._sent = self._sent, self._sent + 1
            told = self._said(
                "video.chunk_metadata",
                kind="media",
                transport_chunk_index=number,
                generation_chunk_index=values["chunk"],
                num_frames=values["frames"],
                byte_length=len(data),
            )
            return told, data
        if kind == "prompt.queued":
            return self._said("session.interaction.queued", event_id=values.get("event_id")), None
        if kind == "session.done":
            stopped = values["reason"] != "complete"
            return self._said(kind, chunks=self._sent, stopped=stopped), None
        if kind == "error":
            error = values["error"]
            return self._said(kind, **error, error=error, fatal=values["fatal"]), None
        return ({"type": kind}, None) if kind == "session.pong" else None

    def _said(self, name: str, /, **values: Any) -> dict[str, Any]:
        return {"type": name, "request_id": self._session, **values}
