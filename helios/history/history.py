"""The past of a video as a value, and the only code that cuts windows from it.

A live stream appends chunk after chunk; training cuts the window of any section out of a whole
clip. Both give the same window for the same latents (specification "training", 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from helios.geometry import CHUNK_LATENTS
from helios.history.window import HISTORY_FRAMES, PAST_FRAMES, HistoryWindow

__all__ = ["History", "cut_window"]


@dataclass(frozen=True)
class History:
    """What is kept of a video: its anchor and its last 19 latent frames. Memory is constant.

    Every method returns a new value, so a history can be kept, branched and saved. Samples of a
    batch may have pasts of different length.
    """

    _window: HistoryWindow

    @classmethod
    def empty(
        cls,
        batch: int,
        channels: int,
        height: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> History:
        """No past: the start of text to video. ``height`` and ``width`` are latent cells."""
        shape = (batch, channels, HISTORY_FRAMES, height, width)
        frames = torch.zeros(shape, device=device, dtype=dtype)
        present = torch.zeros(batch, HISTORY_FRAMES, device=device, dtype=torch.bool)
        elapsed = torch.zeros(batch, device=device, dtype=torch.int64)
        return cls(HistoryWindow(frames, present, elapsed))

    @classmethod
    def from_image(cls, image_latent: Tensor, still_latent: Tensor) -> History:
        """A picture as anchor, and as most recent frame what a still shot of it would end in.

        Both are ``[B, C, 1, h, w]`` (specification "model and sampling", 7.4, 7.5).
        """
        return cls.from_video(image_latent, still_latent)

    @classmethod
    def from_video(cls, anchor: Tensor, latents: Tensor) -> History:
        """An anchor ``[B, C, 1, h, w]`` and a past ``[B, C, n, h, w]`` whose last 19 frames count.

        Raises:
            ValueError: if the two differ in anything but the number of frames.
        """
        batch, channels, frames, height, width = anchor.shape
        if frames != 1:
            raise ValueError(f"the anchor must be one frame, got {tuple(anchor.shape)}")
        history = cls.empty(
            batch, channels, height, width, device=anchor.device, dtype=anchor.dtype
        )
        return history.moved_anchor(anchor).append(latents)

    @classmethod
    def from_window(cls, window: HistoryWindow) -> History:
        """Continue from a window that training cut."""
        return cls(window)

    def append(self, chunk: Tensor) -> History:
        """The history after ``chunk [B, C, n, h, w]``; its first frame becomes a missing anchor."""
        old = self._window
        kept = (*old.frames.shape[:2], *old.frames.shape[3:])
        if chunk.ndim != 5 or (*chunk.shape[:2], *chunk.shape[3:]) != kept:
            raise ValueError(
                f"chunk must be [B, C, n, h, w] as {tuple(old.frames.shape)}, "
                f"got {tuple(chunk.shape)}"
            )
        chunk = chunk.to(old.frames.dtype)
        had_anchor = old.present[:, :1]
        anchor = torch.where(had_anchor[:, None, :, None, None], old.anchor, chunk[:, :, :1])
        past = torch.cat((old.frames[:, :, 1:], chunk), dim=2)[:, :, -PAST_FRAMES:]
        there = torch.ones(chunk.shape[0], chunk.shape[2], dtype=torch.bool, device=chunk.device)
        present = torch.cat((old.present[:, 1:], there), dim=1)[:, -PAST_FRAMES:]
        return History(
            HistoryWindow(
                torch.cat((anchor, past), dim=2),
                torch.cat((torch.ones_like(had_anchor), present), dim=1),
                None if old.elapsed is None else old.elapsed + chunk.shape[2],
            )
        )

    def moved_anchor(self, frame: Tensor) -> History:
        """The same past with ``frame [B, C, 1, h, w]`` as anchor."""
        old = self._window
        frames = torch.cat((frame.to(old.frames.dtype), old.frames[:, :, 1:]), dim=2)
        present = torch.cat((torch.ones_like(old.present[:, :1]), old.present[:, 1:]), dim=1)
        return History(replace(old, frames=frames, present=present))

    def window(self) -> HistoryWindow:
        """What the model sees before the next chunk."""
        return self._window

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> History:
        """The same history elsewhere."""
        return History(self._window.to(device, dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save; a history restored from them continues bit for bit."""
        window = self._window
        state = {"frames": window.frames, "present": window.present}
        return state if window.elapsed is None else {**state, "elapsed": window.elapsed}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> History:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: if a tensor is missing or has another shape.
        """
        if set(state) - {"elapsed"} != {"frames", "present"}:
            raise ValueError(f"a history has 'frames' and 'present', got {sorted(state)}")
        return cls(HistoryWindow(state["frames"], state["present"].bool(), state.get("elapsed")))


def cut_window(sections: Tensor, k: int | Tensor) -> tuple[HistoryWindow, Tensor]:
    """The window before section ``k`` of a clip, and that section.

    Equal to streaming the sections before ``k`` through ``History`` from an empty start, so at
    ``k = 0`` everything is absent and the anchor is absent too (training specification, 2.2).

    Args:
        sections: ``[B, C, 9 S, h, w]``, S consecutive sections of a video from its beginning.
        k: one section for the batch, or a long tensor ``[B]`` with one per sample, from 0 to
            S - 1. A tensor on an accelerator is not checked here, for that would wait for it.

    Returns:
        The window (``[B, C, 20, h, w]``) and the target ``[B, C, 9, h, w]``.

    Raises:
        ValueError: if the frames are not whole sections or ``k`` is outside of them.
    """
    batch, channels, length, height, width = sections.shape
    count = length // CHUNK_LATENTS
    if length == 0 or length % CHUNK_LATENTS:
        raise ValueError(f"a clip must be whole sections of {CHUNK_LATENTS} frames, got {length}")
    chosen = _sections_of(k, batch, count, sections.device)
    begin = CHUNK_LATENTS * chosen[:, None]
    steps = torch.arange(-PAST_FRAMES, CHUNK_LATENTS, device=sections.device)
    source = torch.cat((torch.zeros_like(begin), begin + steps), dim=1)
    index = source.clamp_min(0)[:, None, :, None, None]
    cut = sections.gather(2, index.expand(batch, channels, -1, height, width))

    present = torch.cat((begin > 0, source[:, 1:HISTORY_FRAMES] >= 0), dim=1)
    frames = cut[:, :, :HISTORY_FRAMES].masked_fill(~present[:, None, :, None, None], 0)
    return HistoryWindow(frames, present, begin[:, 0]), cut[:, :, HISTORY_FRAMES:]


def _sections_of(k: int | Tensor, batch: int, count: int, device: torch.device) -> Tensor:
    """``k`` as a long tensor ``[B]`` on ``device``, checked where that is free."""
    if isinstance(k, int):
        if not 0 <= k < count:
            raise ValueError(f"k must be from 0 to {count - 1}, got {k}")
        return torch.full((batch,), k, device=device)
    if k.shape != (batch,) or k.dtype != torch.int64:
        raise ValueError(f"k must be a long tensor [{batch}], got {k.dtype} {tuple(k.shape)}")
    if k.device.type == "cpu" and bool(((k < 0) | (k >= count)).any()):
        raise ValueError(f"k must be from 0 to {count - 1}, got {k.tolist()}")
    return k.to(device, non_blocking=True)
