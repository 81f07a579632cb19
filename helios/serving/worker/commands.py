"""What the front process can ask of a worker; everything here runs in the engine's thread."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios.serving.worker.faults import Faults
from helios.serving.worker.streams import Stream, keep_for

if TYPE_CHECKING:
    from helios.pipeline import Pipeline
    from helios.serving.worker.transport import Message

__all__ = ["QUICK", "Commands"]

QUICK = frozenset(
    {"prompt", "lora", "stop", "close", "taken", "until", "fault", "save", "shutdown"}
)
"""Commands that may be done between two steps of a chunk."""


class Commands:
    """The streams of a worker and what can be done with them; a method ``_do_NAME`` each."""

    def __init__(self, pipeline: Pipeline, *, borders: int, faults: bool) -> None:
        self._pipeline = pipeline
        self._borders = borders
        self._faults = Faults(enabled=faults)
        self._streams: dict[str, Stream] = {}
        self._current: Stream | None = None
        self._stopping = False

    def _send(self, message: Message, body: bytes = b"") -> None:
        raise RuntimeError("an engine sends")

    def _end(self, stream: Stream) -> None:
        raise RuntimeError("an engine ends streams")

    def _do_open(
        self,
        stream: str,
        request: dict[str, Any],
        media: dict[str, Any] | None,
        loras: dict[str, float],
        until: int | None,
    ) -> dict[str, Any]:
        from helios.pipeline import Request
        from helios.serving.worker.references import read_reference

        values = {k: tuple(v) if isinstance(v, list) else v for k, v in request.items()}
        if isinstance(request.get("prompt"), list):
            values["prompt"] = [tuple(part) for part in request["prompt"]]
        given = Request.make(**values)
        self._wear(loras)
        resolved = self._pipeline.defaults.resolve(given, self._pipeline.schedule, endless=True)
        if media is not None:
            values |= read_reference(media, resolved.height, resolved.width)
            given = Request.make(**values)
        keep = keep_for(resolved.height, resolved.width, self._borders)
        session = self._pipeline.session(given, keep=keep)
        if media is not None:
            session.settings[media["kind"]] = media["name"]
        return self._add(stream, session, loras, until)

    def _do_resume(
        self,
        stream: str,
        path: str,
        num_frames: int | None,
        endless: bool,
        settings: dict[str, Any],
        loras: dict[str, float],
        until: int | None,
        stopped: bool = False,
        prompt: str | None = None,
        transition: int = 0,
        seed: int | None = None,
    ) -> dict[str, Any]:
        self._wear(loras)
        keep = keep_for(settings["height"], settings["width"], self._borders)
        session = self._pipeline.resume(path, num_frames=num_frames, keep=keep)
        if endless:
            session.extend(None)
        session.settings["seed"] = settings.get("seed")
        if seed is not None:
            session = session.branch(session.index, seed=seed)
            session.settings["branch_seed"] = seed
        if prompt is not None:
            session.prompt(prompt, transition)
        if stopped:
            session.stop()
        return self._add(stream, session, loras, until)

    def _add(
        self, name: str, session: Any, loras: dict[str, float], until: int | None
    ) -> dict[str, Any]:
        from helios.media import FragmentEncoder

        settings = session.settings
        encoder = FragmentEncoder(settings["width"], settings["height"], settings["fps"], settings)
        stream = Stream(name=name, session=session, encoder=encoder, loras=dict(loras), until=until)
        stream.restart_at(session.index)
        self._streams[name] = stream
        self._send({"event": "header", "stream": name}, encoder.header)
        return {"settings": settings, "mime": encoder.mime, "chunk": session.index}

    def _do_branch(
        self,
        stream: str,
        new: str,
        chunk: int,
        prompt: str | None,
        transition: int,
        seed: int | None,
    ) -> dict[str, Any]:
        old = self._streams[stream]
        _check_kept(old, chunk)
        session = old.session.branch(chunk, seed=seed)
        if seed is not None:
            session.settings["branch_seed"] = seed
        if prompt is not None:
            session.prompt(prompt, transition)
        ahead = None if old.until is None else max(old.until, chunk)
        return self._add(new, session, old.loras, ahead)

    def _do_extend(
        self, stream: str, num_frames: int | None, add: int | None = None
    ) -> dict[str, Any]:
        own = self._streams[stream]
        if add is not None:
            num_frames = own.made + add
        chunk = own.session.extend(num_frames)
        own.ended = False
        own.restart_at(chunk)
        return {"chunk": chunk, "num_frames": num_frames}

    def _do_save(self, stream: str, path: str, chunk: int | None) -> dict[str, Any]:
        own = self._streams[stream]
        self._wear(own.loras)
        session = own.session
        if chunk is not None and chunk != session.index:
            _check_kept(own, chunk)
            session = session.branch(chunk)
        if not Path(path).parent.is_dir():  # the session was deleted; saving would make it again
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        session.save(path)
        return {"chunk": session.index}

    def _do_prompt(
        self, stream: str, prompt: str, transition: int, chunk: int | None = None
    ) -> dict[str, Any]:
        own = self._streams[stream]
        lands, superseded = own.prompt(prompt, transition, chunk)
        soonest = own.session.index + (own is self._current)
        return {"chunk": lands, "soonest": soonest, "superseded": superseded}

    def _do_lora(self, stream: str, loras: dict[str, float]) -> dict[str, Any]:
        own = self._streams[stream]
        self._check_loras(loras)
        own.loras = dict(loras)
        return {"chunk": own.session.index + (own is self._current)}

    def _do_stop(self, stream: str) -> None:
        own = self._streams[stream]
        own.session.stop()
        if own is not self._current and not own.ended:
            self._end(own)

    def _do_close(self, stream: str) -> None:
        own = self._streams.pop(stream, None)
        if own is not None:
            own.cancelled = True

    def _do_taken(self, stream: str) -> None:
        own = self._streams.get(stream)
        if own is not None:
            own.waiting -= 1

    def _do_until(self, stream: str, chunk: int | None) -> None:
        own = self._streams.get(stream)
        if own is not None:
            own.until = chunk

    def _do_fault(self, kind: str, after: int, seconds: float) -> None:
        self._faults.add(kind, after, seconds)

    def _do_shutdown(self) -> None:
        self._stopping = True

    def _wear(self, loras: dict[str, float]) -> None:
        """Exactly these adapters from now on."""
        self._check_loras(loras)
        for name, scale in self._pipeline.loras.items():
            wanted = loras.get(name, 0.0)
            if scale != wanted:
                self._pipeline.set_lora_scale(name, wanted)

    def _wears(self, loras: dict[str, float]) -> bool:
        """Whether exactly these adapters are on the weights."""
        return all(scale == loras.get(name, 0.0) for name, scale in self._pipeline.loras.items())

    def _check_loras(self, loras: dict[str, float]) -> None:
        for name in loras:
            if name not in self._pipeline.loras:
                known = ", ".join(self._pipeline.loras) or "none"
                raise ValueError(f"lora {name!r} is not on this server; it has: {known}")


def _check_kept(stream: Stream, chunk: int) -> None:
    kept = stream.session.kept
    if chunk not in kept:
        error = ValueError(f"chunk must be from {kept.start} to {kept.stop - 1}, got {chunk}")
        error.code = "chunk_not_kept"  # type: ignore[attr-defined]
        raise error
