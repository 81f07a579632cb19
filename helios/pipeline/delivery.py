"""From clean latents to frames on the host, without making the transformer wait.

On CUDA the decoder runs on a stream of its own beside the transformer's, or on a second GPU; frames
travel to pinned host memory on that stream, and nobody waits before ``Delivery.wait`` is called.
On a CPU a thread can do the same. The order is that of the chunks, and what goes wrong is raised
where the frames are asked for.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from helios.codec import Codec

__all__ = ["Clock", "Delivery", "Outlet"]


class Clock:
    """Seconds that work takes where it is done: on a CUDA stream, or in the calling thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event | float] = [self._mark()]

    def _mark(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def stop(self) -> None:
        """What is measured ends here."""
        self._marks.append(self._mark())

    def wait(self) -> float:
        """Wait for the end, and tell the seconds from the beginning to it."""
        start, end = self._marks
        if isinstance(start, float) or isinstance(end, float):
            return float(end) - float(start)  # type: ignore[arg-type]
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)


class Decoded(NamedTuple):
    """What a chunk comes to, on the host.

    Attributes:
        first: the first frame alone ``uint8 [H, W, 3]``, if it was asked for.
        first_clock: of its decoding.
        frames: ``uint8 [T, H, W, 3]``.
        latents: ``float32 [16, 9, h, w]``.
        clock: of the decoding of all.
    """

    first: Tensor | None
    first_clock: Clock
    frames: Tensor
    latents: Tensor
    clock: Clock


class Delivery:
    """One chunk on its way to the host."""

    def __init__(self, work: Future[Decoded]) -> None:
        self._work = work

    def first(self) -> NDArray[np.uint8]:
        """The first frame ``uint8 [H, W, 3]``, waited for alone."""
        decoded = self._work.result()
        if decoded.first is None:
            raise ValueError("the first frame was not asked for")
        decoded.first_clock.wait()
        return decoded.first.numpy().copy()

    def wait(self) -> tuple[NDArray[np.uint8], Tensor, float]:
        """Frames ``uint8 [T, H, W, 3]``, latents ``float32 [16, 9, h, w]``, seconds of decoding."""
        decoded = self._work.result()
        seconds = decoded.clock.wait()
        if not decoded.frames.is_pinned():
            return decoded.frames.numpy(), decoded.latents, seconds
        # Pinned memory is scarce and goes back; what the user keeps is ordinary.
        return decoded.frames.numpy().copy(), decoded.latents.clone(), seconds


class Outlet:
    """Decodes chunk after chunk, beside whatever else runs.

    Args:
        codec: on the device to decode on, which may be another than that of the latents.
        beside: whether decoding may overlap with what its caller does next; else it is done, or on
            CUDA queued in line, when ``send`` returns.
    """

    def __init__(self, codec: Codec, *, beside: bool) -> None:
        self.codec = codec
        self.beside = beside
        self._thread: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None

    def __enter__(self) -> Outlet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, if there is one; work not begun is dropped."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None

    def send(self, latents: Tensor, frames: int, *, first: bool = False) -> Delivery:
        """Decode ``latents [1, 16, t, h, w]`` and bring the first ``frames`` frames to the host.

        With ``first`` the first frame is decoded alone before all of them: it needs a thirtieth of
        the work and equals the chunk's own first frame up to rounding.
        """
        if self.codec.device.type == "cuda":
            done: Future[Decoded] = Future()
            done.set_result(self._queue(latents, frames, first))
            return Delivery(done)
        if not self.beside:
            done = Future()
            done.set_result(self._decode(latents, frames, first))
            return Delivery(done)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        return Delivery(self._thread.submit(self._decode, latents, frames, first))

    def _queue(self, latents: Tensor, frames: int, first: bool) -> Decoded:
        """The same on a CUDA stream; returns before it is done."""
        device = self.codec.device
        here = torch.cuda.current_stream(latents.device)
        if not self.beside and latents.device == device:
            return self._decode(latents, frames, first)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        made = torch.cuda.Event()
        made.record(here)
        self._stream.wait_event(made)
        # The memory may be given to others only when this stream has read it too.
        latents.record_stream(self._stream)
        with torch.cuda.device(device), torch.cuda.stream(self._stream):
            return self._decode(latents.to(device, non_blocking=True), frames, first)

    @torch.no_grad()
    def _decode(self, latents: Tensor, frames: int, first: bool) -> Decoded:
        device = self.codec.device
        alone, first_clock = None, Clock(device)
        if first:
            alone = _to_host(self.codec.decode_uint8(latents[:, :, :1])[0, 0])
        first_clock.stop()
        clock = Clock(device)
        decoded = self.codec.decode_uint8(latents)[0, :frames]
        on_host = _to_host(decoded), _to_host(latents[0].float())
        clock.stop()
        return Decoded(alone, first_clock, *on_host, clock)


def _to_host(value: Tensor) -> Tensor:
    """``value`` on the host; from CUDA a copy in pinned memory that is still on its way."""
    if value.device.type != "cuda":
        return value
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return host.copy_(value, non_blocking=True)
