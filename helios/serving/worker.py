"""The process that owns the model: commands in, chunks out, one stream after the other.

One thread makes chunks and does everything that touches the model; it looks at commands between
chunks and between denoising steps, so a cancelled stream stops within a step. A second thread
reads commands, a third encodes and sends. ``python -m helios.serving.worker FD`` is started by the
front process and dies with it.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from helios.errors import CheckpointError, InputError
from helios.serving.faults import Faults
from helios.serving.streams import Stream, keep_for, thumbnail
from helios.serving.transport import Channel, ClosedError, Message

if TYPE_CHECKING:
    from helios.pipeline import Chunk, Pipeline

__all__ = ["Worker", "failure_of", "main"]

BEAT = 0.5
"""Seconds between two signs of life."""
_QUICK = frozenset({"prompt", "lora", "stop", "close", "taken", "until", "fault", "shutdown"})
"""Commands that may be done between two steps of a chunk."""


class Cancelled(BaseException):
    """The chunk being made is not wanted any more."""


class Worker:
    """A model and the streams it makes in turns.

    Args:
        pipeline: makes the chunks.
        channel: to the front process.
        borders: bytes of states that each stream may keep to go back to.
        faults: whether faults may be injected.
    """

    def __init__(
        self, pipeline: Pipeline, channel: Channel, *, borders: int, faults: bool = False
    ) -> None:
        self._pipeline = pipeline
        self._channel = channel
        self._borders = borders
        self._faults = Faults(enabled=faults)
        self._streams: dict[str, Stream] = {}
        self._commands: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._later: list[Message] = []
        self._encoding: queue.Queue[Callable[[], None]] = queue.Queue(4)
        self._current: Stream | None = None
        self._steps, self._beaten = 0, 0.0
        self._stopping = False
        pipeline.transformer.register_forward_pre_hook(self._step)

    def run(self) -> None:
        """Serve until told to stop."""
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._encode, daemon=True).start()
        while not self._stopping:
            stream = next((s for s in self._streams.values() if s.ready), None)
            self._obey(wait=stream is None)
            self._beat()
            # The command may have ended or closed it.
            if stream is not None and stream.ready and stream.name in self._streams:
                self._make(stream)
        self._encoding.join()

    # ------------------------------------------------------------------------------- threads

    def _listen(self) -> None:
        try:
            while True:
                message, _ = self._channel.receive()
                self._commands.put(message)
        except (ClosedError, OSError):
            os._exit(0)  # without the front process there is nobody to work for

    def _encode(self) -> None:
        while True:
            task = self._encoding.get()
            try:
                task()
            except OSError:
                os._exit(0)
            finally:
                self._encoding.task_done()

    # ------------------------------------------------------------------------------ commands

    def _obey(self, *, wait: bool) -> None:
        """Do what was asked; with ``wait`` stay until something is."""
        commands, self._later = self._later, []
        if wait and not commands:
            with suppress(queue.Empty):
                commands.append(self._commands.get(timeout=BEAT))
        with suppress(queue.Empty):
            while True:
                commands.append(self._commands.get_nowait())
        for command in commands:
            self._do(command)

    def _do(self, command: Message) -> None:
        noted: list[str] = []
        call = command.pop("call", None)
        try:
            with _Warnings(noted):
                answer = getattr(self, f"_do_{command.pop('op')}")(**command)
        except Exception as error:
            code, text = failure_of(error)
            if code == "internal_error":
                _log_failure(error)
            if call is not None:
                self._send({"event": "answer", "call": call, "code": code, "message": text})
            return
        if call is not None:
            reply = {"event": "answer", "call": call, "warnings": noted, **(answer or {})}
            self._send(reply)

    def _do_open(
        self,
        stream: str,
        request: dict[str, Any],
        media: dict[str, Any] | None,
        loras: dict[str, float],
        until: int | None,
    ) -> dict[str, Any]:
        from helios.pipeline import Request
        from helios.serving.references import read_reference

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
        session.save(path)
        return {"chunk": session.index}

    def _do_prompt(self, stream: str, prompt: str, transition: int) -> dict[str, Any]:
        lands, superseded = self._streams[stream].prompt(prompt, transition)
        return {"chunk": lands, "superseded": superseded}

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

    # -------------------------------------------------------------------------------- chunks

    def _make(self, stream: Stream) -> None:
        """One chunk of ``stream``, which then goes to the end of the round."""
        self._streams[stream.name] = self._streams.pop(stream.name)
        self._current = stream
        began = time.monotonic()
        try:
            self._wear(stream.loras)
            chunk = next(stream.session)
        except StopIteration:
            self._end(stream)
        except Cancelled:
            pass
        except Exception as error:
            self._fail(stream, error)
        else:
            stream.waiting += 1
            landed = stream.landed(chunk)
            took = time.monotonic() - began
            kept = [stream.session.kept.start, stream.session.kept.stop - 1]
            sharing = len(self._streams)
            self._encoding.put(lambda: self._publish(stream, chunk, landed, took, kept, sharing))
            if stream.session.stopped or stream.complete:
                self._end(stream)
        finally:
            self._current = None

    def _end(self, stream: Stream) -> None:
        """Say that nothing more comes, after what is being encoded."""
        stream.ended = True
        message = {
            "event": "ended",
            "stream": stream.name,
            "reason": "complete" if stream.complete else "stopped",
            "chunk": stream.session.index,
        }
        self._encoding.put(lambda: self._send(message))

    def _publish(
        self,
        stream: Stream,
        chunk: Chunk,
        landed: dict[str, Any] | None,
        took: float,
        kept: list[int],
        sharing: int,
    ) -> None:
        """In the encoder's thread: frames to a fragment, and off."""
        if stream.cancelled:
            return
        began = time.monotonic()
        start = stream.encoder.frames
        try:
            fragment = stream.encoder.encode(chunk.frames)
            shown = thumbnail(chunk)
        except Exception as error:
            self._fail(stream, error)
            return
        encoded = time.monotonic() - began
        timings = {k: round(v, 6) for k, v in chunk.timings.items()}
        message = {
            "event": "chunk",
            "stream": stream.name,
            "chunk": chunk.index,
            "start_frame": start,
            "frames": len(chunk.frames),
            "prompt": chunk.prompt,
            "timings": timings | {"encode": round(encoded, 6), "made": round(took, 6)},
            "thumbnail": shown,
            "landed": landed,
            "kept": kept,
            "sharing": sharing,
        }
        self._send(message, fragment)

    def _fail(self, stream: Stream, error: Exception) -> None:
        code, text = failure_of(error)
        if code == "internal_error":
            _log_failure(error)
        if code == "out_of_memory":
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        stream.ended = True
        self._send({"event": "failed", "stream": stream.name, "code": code, "message": text})

    def _wear(self, loras: dict[str, float]) -> None:
        """Exactly these adapters from now on."""
        self._check_loras(loras)
        for name, scale in self._pipeline.loras.items():
            wanted = loras.get(name, 0.0)
            if scale != wanted:
                self._pipeline.set_lora_scale(name, wanted)

    def _check_loras(self, loras: dict[str, float]) -> None:
        for name in loras:
            if name not in self._pipeline.loras:
                known = ", ".join(self._pipeline.loras) or "none"
                raise ValueError(f"lora {name!r} is not on this server; it has: {known}")

    def _step(self, *_: object) -> None:
        """Before every run of the transformer."""
        if self._current is None:
            return
        self._steps += 1
        self._faults.strike(self._current.session.index)
        with suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if command.get("op") in _QUICK:
                    self._do(command)
                else:
                    self._later.append(command)
        self._beat()
        if self._current.cancelled or self._stopping:
            raise Cancelled

    def _beat(self) -> None:
        """A sign of life, from the thread that does the work."""
        now = time.monotonic()
        if now - self._beaten < BEAT:
            return
        self._beaten = now
        from helios.pipeline import resident_memory

        memory = resident_memory(self._pipeline.device)
        host = resident_memory()
        busy = any(s.ready for s in self._streams.values())
        self._send(
            {
                "event": "beat",
                "steps": self._steps,
                "busy": busy,
                "streams": len(self._streams),
                "memory": memory,
                "resident": host,
            }
        )

    def _send(self, message: Message, body: bytes = b"") -> None:
        try:
            self._channel.send(message, body)
        except OSError:
            os._exit(0)


def _check_kept(stream: Stream, chunk: int) -> None:
    kept = stream.session.kept
    if chunk not in kept:
        error = ValueError(f"chunk must be from {kept.start} to {kept.stop - 1}, got {chunk}")
        error.code = "chunk_not_kept"  # type: ignore[attr-defined]
        raise error


def failure_of(error: BaseException) -> tuple[str, str]:
    """Code and message for a client; what a library says stays in the log."""
    code = getattr(error, "code", None)
    if isinstance(error, ValueError) and isinstance(code, str):
        return code, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory", "there was not enough memory; try a smaller size"
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return "out_of_memory", "there was not enough memory; try a smaller size"
    if isinstance(error, FloatingPointError):
        return "non_finite_output", "the model gave values that are not finite"
    if isinstance(error, InputError):
        return "invalid_prompt", str(error)
    if isinstance(error, CheckpointError):
        return "invalid_session", "the saved session does not fit this server's model"
    if isinstance(error, ValueError):
        return "invalid_value", str(error)
    if isinstance(error, KeyError):
        return "no_session", "the stream is gone"
    if isinstance(error, OSError):
        return "insufficient_storage", "the file could not be written or read"
    return "internal_error", "something went wrong; the server's log knows more"


def _log_failure(error: BaseException) -> None:
    from helios.serving.logs import log

    log("worker_error", kind=type(error).__name__, detail=str(error)[:500])


class _Warnings:
    """Collects warnings of ours raised in this block; the engine's thread only."""

    def __init__(self, into: list[str]) -> None:
        self._into = into

    def __enter__(self) -> None:
        self._catch = warnings.catch_warnings(record=True)
        self._caught = self._catch.__enter__()
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)

    def __exit__(self, *_: object) -> None:
        self._catch.__exit__(None, None, None)
        texts = [str(w.message) for w in self._caught or [] if "helios" in w.filename]
        self._into.extend(dict.fromkeys(texts))


def main(arguments: list[str]) -> int:
    """``python -m helios.serving.worker FD``."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front process decides when to stop
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    try:
        config, _ = channel.receive()
    except ClosedError:
        return 0
    try:
        pipeline = _load(config)
    except Exception as error:
        from helios.serving.logs import log

        log("worker_start_failed", kind=type(error).__name__, detail=str(error)[:2000])
        channel.send({"event": "broken", "kind": type(error).__name__, "message": str(error)})
        return 1
    channel.send({"event": "ready", "model": _describe(pipeline)})
    Worker(pipeline, channel, borders=int(config["borders"]), faults=bool(config["faults"])).run()
    return 0


def _load(config: Message) -> Pipeline:
    from helios.pipeline import load

    pipeline = load(config["model"], config["device"], config["dtype"])
    for name, path in config["loras"].items():
        pipeline.load_lora(path, name, 0.0)
    return pipeline


def _describe(pipeline: Pipeline) -> dict[str, Any]:
    """What can be asked of this model."""
    from helios.geometry import CHUNK_FRAMES, size_multiple

    defaults = pipeline.defaults
    return {
        "name": pipeline.name,
        "defaults": defaults.to_json(),
        "scales": defaults.scales,
        "size_multiple": size_multiple(defaults.scales),
        "chunk_frames": CHUNK_FRAMES,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "loras": list(pipeline.loras),
        "has_text_encoder": pipeline.text_encoder is not None,
    }


def _die_with_parent() -> None:
    """No worker outlives its front process, whatever kills that (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
