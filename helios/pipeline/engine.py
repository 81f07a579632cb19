"""The transformer as a stream uses it: the same text and the same few timesteps over and over.

What depends on the prompt alone (keys and values of the text) and on the timestep alone (two rows
of modulation per block) is computed once and kept. On CUDA a forward pass is recorded as a graph
per scale and replayed. None of this changes a result. What does is an approximation: off unless
asked for, and named in the settings of every video made with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from helios.diffusion import Denoiser
from helios.history import HistoryWindow
from helios.model import (
    Graphs,
    HeliosTransformer,
    HistoryMemory,
    StepRows,
    TextMemory,
    adapters_of,
    forward_noisy,
    forward_recorded,
)

__all__ = ["Engine", "EngineConfig"]

_log = logging.getLogger("helios.pipeline")

Reuse: TypeAlias = Literal["never", "scale", "chunk"]
_TEXTS = 2
"""Texts whose keys and values are kept: what is shown, and what guidance moves away from."""
_TIMES = 64
"""Timesteps whose modulation rows are kept (10 MB each at the full size)."""
_SHAPES = 4
"""Sizes whose buffers and graphs are kept."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How forward passes are made.

    Attributes:
        graphs: record and replay CUDA graphs where that is possible.
        reuse_history: an approximation. ``"scale"``: history keys and values are those of the
            first step of each scale; ``"chunk"``: those of the first step of the chunk.
        preview: an approximation. The folder of a preview decoder that makes the frames in place of
            the codec's own; latents, and so the chunks to come, are what they would have been.
        tune_decoder: how many of cuDNN's algorithms are tried for every convolution of the decoder
            when it first decodes a whole chunk; 0: its first guess is taken. Trying takes seconds
            once per process and may round in another order.
    """

    graphs: bool = True
    reuse_history: Reuse = "never"
    preview: Path | None = None
    tune_decoder: int = 0

    def __post_init__(self) -> None:
        """Refuse a word that means nothing."""
        if self.reuse_history not in get_args(Reuse):
            raise ValueError(
                f"reuse_history must be one of {', '.join(get_args(Reuse))}, "
                f"got {self.reuse_history!r}"
            )
        if self.tune_decoder < 0:
            raise ValueError(f"tune_decoder must not be negative, got {self.tune_decoder}")

    @property
    def approximations(self) -> list[str]:
        """Names of what is not exact, for the settings of a video."""
        reused = [] if self.reuse_history == "never" else [f"reuse_history={self.reuse_history}"]
        return reused if self.preview is None else [*reused, "preview_decoder"]


class Engine:
    """Forward passes of one transformer.

    It notices changed weights and adapters by itself, at the beginning of a chunk.

    Args:
        transformer: the network, on its device and in its dtype.
        config: how.

    Attributes:
        watchers: told the shape of the latents of every forward pass; a replayed one calls no
            module that could be hooked.
    """

    def __init__(self, transformer: HeliosTransformer, config: EngineConfig | None = None) -> None:
        self.transformer = transformer
        self.config = config or EngineConfig()
        if self.config.reuse_history != "never" and any(map(_moves, transformer.blocks)):
            raise ValueError("history cannot be reused while blocks come from host memory")
        self.watchers: list[Callable[[torch.Size], None]] = []
        self._state: object = None
        self._forget()

    def _forget(self) -> None:
        self._texts: dict[int, tuple[Tensor, TextMemory]] = {}
        self._rows: dict[tuple[float, int], StepRows] = {}
        self._graphs: Graphs | None = Graphs() if self.graphed else None
        self._held: dict[tuple[int, ...], _Held] = {}
        self._now: float | None = None
        self._bound = 0

    @property
    def graphed(self) -> bool:
        """Whether graphs are used: asked for, on CUDA, and nothing is moved between blocks."""
        transformer = self.transformer
        if not self.config.graphs or transformer.device.type != "cuda":
            return False
        if transformer.config.absolute_positions:
            return False
        return not any(_moves(block) for block in transformer.blocks)

    def begin(self) -> None:
        """A chunk begins: drop what was kept if weights or adapters are others now."""
        self._now, self._bound = None, 0
        state = _state(self.transformer)
        if state != self._state or len(self._held) > _SHAPES:
            self._state = state
            self._forget()

    def at(self, timestep: float | None) -> None:
        """Tell the time of the next step, so that nobody has to ask the device for it."""
        self._now = timestep

    @torch.no_grad()
    def bind(self, text: Tensor, window: HistoryWindow) -> Denoiser:
        """The transformer over one text ``[B, L, D]`` and one window, for one chunk."""
        memory = self._read(text)
        window = self.transformer.remembered(window)
        place = self._bound
        self._bound += 1
        return _Run(self, self._hold(place, memory, window)).denoise

    def _read(self, text: Tensor) -> TextMemory:
        known = self._texts.pop(id(text), None)
        if known is None or known[0] is not text:
            known = (text, self.transformer.read(text))
        while len(self._texts) >= _TEXTS:
            del self._texts[next(iter(self._texts))]
        self._texts[id(text)] = known
        return known[1]

    def rows(self, timestep: Tensor) -> StepRows:
        """Modulation of the step that :meth:`at` announced, or of any if it did not."""
        if self._now is None:
            return self.transformer.modulate(timestep)
        key = (self._now, len(timestep))
        if key not in self._rows:
            if len(self._rows) >= _TIMES:
                self._rows.clear()
            self._rows[key] = self.transformer.modulate(timestep)
        return self._rows[key]

    def forward(self, kind: str, x: Tensor, rows: StepRows, held: _Held) -> Tensor:
        """One forward pass of a ``kind`` ("exact", "record", "noisy"), replayed if possible."""
        for watcher in self.watchers:
            watcher(x.shape)
        x = x.to(self.transformer.dtype)
        call = partial(_pass, self.transformer, held, kind)
        if self._graphs is None:
            return call(x, rows.head, rows.blocks)
        try:
            return self._graphs((kind, x.shape, id(held)), call, (x, rows.head, rows.blocks))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            _log.warning("CUDA graphs are not used: recording failed (%s)", reason)
            self._graphs = None
            return call(x, rows.head, rows.blocks)

    def _hold(self, place: int, text: TextMemory, window: HistoryWindow) -> _Held:
        """What the forward passes of one binding read; on CUDA in memory that stays where it is."""
        if self._graphs is None:
            return _Held(text, window)
        shape = (place, text.blocks[0][0].shape[1], *window.frames.shape)
        if shape not in self._held:
            self._held[shape] = _Held(*_copied(text, window))
        self._held[shape].put(text, window)
        return self._held[shape]


class _Held:
    """What every forward pass of a chunk reads beside its latents; recorded graphs read it here."""

    def __init__(self, text: TextMemory, window: HistoryWindow) -> None:
        self.text, self.window = text, window
        self.memory: HistoryMemory | None = None
        self._shown: TextMemory | None = None

    def put(self, text: TextMemory, window: HistoryWindow) -> None:
        """Fill the buffers; those of the text only if it is another one."""
        if self._shown is not text:
            torch._foreach_copy_(_flat(self.text), _flat(text))
            self._shown = text
        self.window.frames.copy_(window.frames)
        self.window.present.copy_(window.present)

    def keep(self, memory: HistoryMemory) -> None:
        """Put the history's keys and values where later passes find them."""
        if self.memory is None:
            self.memory = tuple((k.clone(), v.clone()) for k, v in memory)
            return
        for (key, value), (new_key, new_value) in zip(self.memory, memory, strict=True):
            key.copy_(new_key)
            value.copy_(new_value)


def _flat(text: TextMemory) -> list[Tensor]:
    return [tensor for pair in text.blocks for tensor in pair]


def _copied(text: TextMemory, window: HistoryWindow) -> tuple[TextMemory, HistoryWindow]:
    """The same in memory of their own."""
    blocks = tuple((key.clone(), value.clone()) for key, value in text.blocks)
    return TextMemory(blocks), HistoryWindow(window.frames.clone(), window.present.clone())


def _pass(
    model: HeliosTransformer, held: _Held, kind: str, x: Tensor, head: Tensor, blocks: Tensor
) -> Tensor:
    """One forward pass over what is held."""
    rows = StepRows(head, blocks)
    if kind == "record":
        velocity, memory = forward_recorded(model, x, rows, held.text, held.window)
        held.keep(memory)
        return velocity
    if kind == "noisy" and held.memory is not None:
        return forward_noisy(model, x, rows, held.text, held.window, held.memory)
    exact: Tensor = model(x, rows, held.text, held.window)
    return exact


class _Run:
    """One chunk: which of its forward passes may lean on an earlier one."""

    def __init__(self, engine: Engine, held: _Held) -> None:
        self.engine, self.held = engine, held
        self.recorded: torch.Size | None = None

    @torch.no_grad()
    def denoise(self, x: Tensor, timestep: Tensor) -> Tensor:
        """``[B, C, T, h, w]`` and ``[B]`` to the velocity."""
        rows = self.engine.rows(timestep)
        return self.engine.forward(self._kind(x.shape), x, rows, self.held)

    def _kind(self, shape: torch.Size) -> str:
        reuse = self.engine.config.reuse_history
        if reuse == "never":
            return "exact"
        if self.recorded is None or (reuse == "scale" and self.recorded != shape):
            self.recorded = shape
            return "record"
        return "noisy"


def _moves(block: torch.nn.Module) -> bool:
    """Whether something is done before or after ``block`` runs, such as bringing its weights."""
    return bool(block._forward_hooks or block._forward_pre_hooks)


def _state(transformer: HeliosTransformer) -> object:
    """What tells one set of weights from another: addresses, versions and acting adapters."""
    tensors = (*transformer.parameters(), *transformer.buffers())
    adapters: list[Any] = [(id(one), scale) for one, scale in adapters_of(transformer).acting]
    version: Callable[[Tensor], int] = lambda t: 0 if t.is_inference() else t._version  # noqa: E731
    return tuple((tensor.data_ptr(), version(tensor)) for tensor in tensors), tuple(adapters)
