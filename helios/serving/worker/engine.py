"""The part of a worker that makes chunks: one stream after the other, each in its turn.

One thread makes chunks and does everything that touches the model; it looks at commands between
chunks and between denoising steps, so a cancelled stream stops within a step. A second thread
reads commands, a third encodes and sends.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from helios.serving.worker.commands import QUICK, Commands
from helios.serving.worker.failures import Collected, failure_of, log_failure
from helios.serving.worker.streams import Stream, thumbnail
from helios.serving.worker.transport import Channel, ClosedError, Message

if TYPE_CHECKING:
    from helios.pipeline import Chunk, Pipeline

__all__ = ["Engine"]

BEAT = 0.5
"""Seconds between two signs of life."""


class Cancelled(BaseException):
    """The chunk being made is not wanted any more."""


class Engine(Commands):
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
        super().__init__(pipeline, borders=borders, faults=faults)
        self._channel = channel
        self._commands: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._later: list[Message] = []
        self._encoding: queue.Queue[Callable[[], None]] = queue.Queue(4)
        self._steps, self._beaten = 0, 0.0
        for module in (pipeline.transformer, pipeline.codec.network.decoder):
            module.register_forward_pre_hook(self._step)

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
            with Collected(noted):
                answer = getattr(self, f"_do_{command.pop('op')}")(**command)
        except Exception as error:
            code, text = failure_of(error)
            if code == "internal_error":
                log_failure(error)
            if call is not None:
                self._send({"event": "answer", "call": call, "code": code, "message": text})
            return
        if call is not None:
            reply = {"event": "answer", "call": call, "warnings": noted, **(answer or {})}
            self._send(reply)

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
            log_failure(error)
        if code == "out_of_memory":
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        stream.ended = True
        self._send({"event": "failed", "stream": stream.name, "code": code, "message": text})

    def _step(self, *_: object) -> None:
        """Before every run of the transformer."""
        if self._current is None:
            return
        self._steps += 1
        self._faults.strike(self._current.session.index)
        with suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if self._is_urgent(command):
                    self._do(command)
                else:
                    self._later.append(command)
        self._beat()
        if self._current.cancelled or self._stopping:
            raise Cancelled

    def _is_urgent(self, command: Message) -> bool:
        """Whether a command is done within a chunk.

        Never one that would change the adapters at work, or overtake another of its stream.
        """
        names = {command.get("stream"), command.get("new")} - {None}
        if any(names & {other.get("stream"), other.get("new")} for other in self._later):
            return False
        if command["op"] == "save":
            own = self._streams.get(command["stream"])
            return own is None or self._wears(own.loras)
        return command["op"] in QUICK

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
