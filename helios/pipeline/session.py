"""A stream with controls that are read between chunks: new prompts, stop, save, branch, resume.

What a stream carries from chunk to chunk is one small value, ``StreamState``. A session replaces
it after each chunk and keeps the last few, so stopping, saving and going back are only a choice
of value, and a resumed stream equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from helios.conditioning import PromptTrack
from helios.errors import CheckpointCorruptError, InputError
from helios.geometry import CHUNK_FRAMES, LATENT_CHANNELS, latent_size
from helios.history import DriftMonitor, History
from helios.model import adapters_of
from helios.pipeline.request import Chunk, Request, Resolved
from helios.storage import read_tensors, write_tensors

if TYPE_CHECKING:
    from helios.pipeline.pipeline import Pipeline

__all__ = ["KEPT_CHUNKS", "SCHEMA", "Session", "StreamState", "resume"]

SCHEMA = 1
"""Version of the saved form; another one is refused."""
KEPT_CHUNKS = 8
"""Chunk borders a session can go back to unless told otherwise (4.7 MiB each at 384x640)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamState:
    """All that a stream carries over the border between two chunks.

    Attributes:
        index: the chunk to come.
        history: what the model will see.
        random: state of the generator.
        track: the prompts; none if embeddings were given.
        drift: running statistics; none if anti-drift is off.
    """

    index: int
    history: History
    random: Tensor
    track: PromptTrack | None
    drift: DriftMonitor | None


class Session:
    """One stream: iterate over it for chunks, control it between them.

    Chunks are made by one thread at a time; the controls may be called from any thread and take
    effect with the next chunk. Made by ``Pipeline.session`` and ``Pipeline.resume``.

    Args:
        pipeline: makes the chunks.
        request: what was asked.
        resolved: the same with every choice made.
        state: where to start.
        generator: drawn from; in the state that ``state`` says.
        settings: what made it, ready for JSON.
        keep: chunk borders to keep for ``branch``, besides the newest.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        request: Request,
        resolved: Resolved,
        state: StreamState,
        generator: torch.Generator,
        *,
        settings: Mapping[str, Any],
        keep: int = KEPT_CHUNKS,
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            raise ValueError(f"keep must be a whole number from 0, got {keep!r}")
        self.settings = dict(settings)
        self._pipeline = pipeline
        # Pixels of the start are in the history by now.
        self._request = replace(request, image=None, video=None)
        self._resolved = resolved
        self._generator = generator
        self._texts = pipeline.texts(self._request, resolved)
        self._states: deque[StreamState] = deque([state], maxlen=keep + 1)
        self._lock = threading.Lock()
        self._making = False
        self._stopped = False

    def __iter__(self) -> Iterator[Chunk]:
        """The session itself: a loop over it can be left and taken up again."""
        return self

    def __next__(self) -> Chunk:
        """Make the next chunk.

        Raises:
            StopIteration: when the video is complete or ``stop`` was called.
            RuntimeError: if another thread is making one.
        """
        with self._lock:
            state = self._states[-1]
            chunks = self._resolved.chunks
            if self._stopped or (chunks is not None and state.index >= chunks):
                raise StopIteration
            if self._making:
                raise RuntimeError("another thread is making a chunk of this session")
            self._making = True
        try:
            chunk, after = self._pipeline.advance(
                self._resolved, state, self._generator, self._texts
            )
        except BaseException:
            # Whoever takes the session up after a failure must not find the chunk half drawn.
            self._generator.set_state(state.random)
            with self._lock:
                self._making = False
            raise
        with self._lock:
            # Prompts may have come while the chunk was made.
            self._states.append(replace(after, track=self._states[-1].track))
            self._making = False
        if self._request.callback is not None:
            self._request.callback(chunk)
        return chunk

    @property
    def index(self) -> int:
        """The chunk to come; also the number of chunks made."""
        return self._states[-1].index

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped

    @property
    def track(self) -> PromptTrack | None:
        """The prompts from the oldest kept chunk on; none if embeddings were given."""
        return self._states[-1].track

    @property
    def kept(self) -> range:
        """Chunks that ``branch`` can go back to."""
        with self._lock:
            return range(self._states[0].index, self._states[-1].index + 1)

    def prompt(self, text: str, transition_chunks: int = 3, *, chunk: int | None = None) -> int:
        """Show ``text`` from the next chunk on, instead of whatever prompt was to come.

        Args:
            text: the new prompt.
            chunk: land there instead, if that is later; what shows now holds until then.
            transition_chunks: chunks from the old prompt to the new one. The first of them still
                shows the old one, the last one the new; 0 or 1 is a cut.

        Returns:
            The chunk it lands in: the first of the transition. A chunk that is being made
            already is not touched.

        Raises:
            InputError: for an unusable prompt.
            ValueError: if the stream has no text to change, the transition is not a whole number
                from 0 to 1000, or ``chunk`` not one from 0.
        """
        if chunk is not None and (type(chunk) is not int or chunk < 0):
            raise ValueError(f"chunk must be a whole number from 0, got {chunk!r}")
        if self._states[-1].track is None:
            raise ValueError("this stream shows prompt_embeds; a live prompt needs a text prompt")
        self._pipeline.check_words(text)
        with self._lock:
            state = self._states[-1]
            soonest = state.index + self._making
            lands = soonest if chunk is None else max(soonest, chunk)
            if state.track is not None:
                track = state.track.until(soonest).changed(lands, text, transition_chunks)
                # What came before the oldest border that is kept can never be shown again.
                self._states[-1] = replace(state, track=track.since(self._states[0].index))
        return lands

    def stop(self) -> None:
        """End the stream before the next chunk; ``save``, ``branch`` and ``extend`` still work."""
        self._stopped = True

    def extend(self, num_frames: int | None = None) -> int:
        """Go on after the end, or after ``stop``.

        Args:
            num_frames: new length of the whole video; none: endless.

        Returns:
            The chunk it goes on with. A last chunk that was cut is made again, whole: what it
            lacked and everything before stays the same.

        Raises:
            ValueError: if it would become shorter, or the cut chunk's beginning is not kept.
            RuntimeError: if a chunk is being made.
        """
        with self._lock:
            if self._making:
                raise RuntimeError("a chunk of this session is being made; stop it first")
            had, made = self._resolved.num_frames, self._states[-1].index * CHUNK_FRAMES
            if num_frames is not None and num_frames < (made if had is None else min(made, had)):
                raise ValueError(f"num_frames={num_frames}: there are more frames already")
            if had is not None and made > had and num_frames != had:
                if len(self._states) < 2:
                    raise ValueError("the last chunk was cut and its beginning is not kept")
                newest = self._states.pop()
                self._states[-1] = replace(self._states[-1], track=newest.track)
                self._generator.set_state(self._states[-1].random)
            self._resolved = replace(self._resolved, num_frames=num_frames)
            self.settings["num_frames"] = num_frames
            self._stopped = False
            return self._states[-1].index

    def branch(self, chunk: int, *, seed: int | None = None) -> Session:
        """A session of its own that goes on differently from the beginning of ``chunk``.

        It has the prompts of this one, so without a new prompt it repeats what was; this session
        is not touched.

        Args:
            chunk: the first one that may differ.
            seed: draw other noise from there on, as a stream of that seed would.

        Raises:
            ValueError: if ``chunk`` is not kept any more, or not made yet.
        """
        with self._lock:
            states, track = list(self._states), self._states[-1].track
        first, last = states[0].index, states[-1].index
        if isinstance(chunk, bool) or not isinstance(chunk, int) or not first <= chunk <= last:
            raise ValueError(
                f"chunk must be from {first} to {last}, what this session keeps "
                f"(pipe.session(…, keep=N) keeps more), got {chunk!r}"
            )
        states = states[: chunk - first + 1]
        generator = torch.Generator(self._generator.device)
        generator.set_state(states[-1].random)
        session = Session(
            self._pipeline,
            self._request,
            self._resolved,
            states[0],
            generator,
            settings=self.settings,
            keep=(self._states.maxlen or 1) - 1,
        )
        session._states.extend(states[1:])
        if seed is not None:
            session._generator.manual_seed(seed)
        random = session._generator.get_state()
        session._states[-1] = replace(states[-1], track=track, random=random)
        return session

    def save(self, path: str | Path) -> Path:
        """Write the session as one safetensors file, whole or not at all.

        The file holds the history, the state of the generator, the prompts, the drift statistics
        and the settings, but no weights; ``Pipeline.resume`` continues from it. A chunk that is
        being made is not part of it.

        Raises:
            OSError: if ``path`` cannot be written.
        """
        with self._lock:
            state = self._states[-1]
        path = Path(path)
        document = {
            "schema": SCHEMA,
            "index": state.index,
            "request": _request_json(self._request, self._resolved),
            "track": None if state.track is None else asdict(state.track),
            "settings": self.settings,
            "schedule": self._resolved.schedule.to_json(),
            "weights": _fingerprint(self._pipeline),
        }
        tensors = {"random": state.random}
        tensors |= {f"history.{key}": value for key, value in state.history.state_dict().items()}
        if state.drift is not None:
            tensors |= {f"drift.{key}": value for key, value in state.drift.state_dict().items()}
        for name in _EMBEDS:
            if getattr(self._request, name) is not None:
                tensors[name] = getattr(self._request, name)
        text = json.dumps(document, ensure_ascii=True, allow_nan=False)
        tensors["document"] = torch.tensor(list(text.encode("ascii")), dtype=torch.uint8)
        write_tensors(path.parent, tensors, path.name)
        return path


_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_NOT_SAVED = frozenset(
    {
        *("prompt", "image", "video", "seconds", "num_frames", "seed", "generator"),
        *("num_videos", "callback"),
        *_EMBEDS,
    }
)
"""Fields of a request that are in the state by then, or belong to the caller."""
_MAY_DIFFER = frozenset(
    {"helios", "model", "prompt", "image", "video", "num_frames", "seed", "branch_seed", "lora"}
)
"""Settings that do not change how the next chunk is made."""


def resume(
    pipeline: Pipeline,
    path: str | Path,
    *,
    num_frames: int | None = None,
    callback: Callable[[Chunk], None] | None = None,
    keep: int = KEPT_CHUNKS,
) -> Session:
    """The session that ``Session.save`` wrote, ready to go on; see ``Pipeline.resume``."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"session {path} does not exist")
    saved = _Saved.read(path)
    saved.check(pipeline)
    try:
        request = saved.request(num_frames, callback)
        resolved = pipeline.defaults.resolve(request, pipeline.schedule, endless=True)
        settings = pipeline.describe(request, resolved, saved.seed)
        saved.compare(settings, resolved)
        state = saved.state(resolved, pipeline.device)
        generator = torch.Generator(pipeline.device)
        generator.set_state(state.random)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointCorruptError(f"session {path} is damaged: {error}") from None
    told = ("image", "video", "branch_seed")
    kept = {key: saved.settings[key] for key in told if key in saved.settings}
    return Session(
        pipeline, request, resolved, state, generator, settings=settings | kept, keep=keep
    )


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """A session file, read but not believed yet."""

    path: Path
    document: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> _Saved:
        tensors = read_tensors(path.parent, path.name)
        try:
            document = json.loads(bytes(tensors.pop("document").tolist()))
            schema = document["schema"]
        except (KeyError, TypeError, ValueError, RecursionError):
            raise CheckpointCorruptError(f"{path} is not a saved session") from None
        if schema != SCHEMA:
            raise CheckpointCorruptError(
                f"session {path} has schema {schema!r}; this version of helios reads {SCHEMA}"
            )
        missing = {"index", "request", "track", "settings", "schedule", "weights"} - set(document)
        if missing or not isinstance(document["settings"], dict):
            raise CheckpointCorruptError(f"session {path} is damaged: no {sorted(missing)}")
        return cls(path=path, document=document, tensors=tensors)

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.document["settings"]
        return settings

    @property
    def seed(self) -> int | None:
        seed = self.settings.get("seed")
        return seed if isinstance(seed, int) else None

    def check(self, pipeline: Pipeline) -> None:
        """Refuse a pipeline that could not go on bit for bit."""
        if self.document["weights"] != _fingerprint(pipeline):
            raise ValueError(
                f"session {self.path} was made by other weights "
                f"({self.settings.get('model')!r}, {self.settings.get('device')} "
                f"{self.settings.get('dtype')}); "
                "load the same model, LoRA, device and dtype to resume it"
            )

    def request(self, num_frames: int | None, callback: Callable[[Chunk], None] | None) -> Request:
        values = {name: _tuples(value) for name, value in self.document["request"].items()}
        if unknown := values.keys() - {item.name for item in fields(Request)}:
            raise CheckpointCorruptError(f"session {self.path} is damaged: {sorted(unknown)}")
        track = self.document["track"]
        if track is not None:
            values["prompt"] = _tuples(track["changes"])
        values |= {name: self.tensors[name] for name in _EMBEDS if name in self.tensors}
        values["callback"] = callback
        if num_frames is not None:
            self._check_length(num_frames, values.get("num_frames"))
            values["num_frames"] = num_frames
        return Request(**values)

    def _check_length(self, asked: int, had: int | None) -> None:
        made = self.document["index"] * CHUNK_FRAMES
        if had is not None and made > had:
            raise ValueError(
                f"num_frames={asked}: session {self.path} is complete and its last chunk was cut "
                f"at frame {had}, so nothing can follow without a gap; "
                f"ask for multiples of {CHUNK_FRAMES}, or save before the end"
            )
        if asked < made:
            raise ValueError(f"num_frames={asked}: session {self.path} has {made} frames already")

    def compare(self, settings: Mapping[str, Any], resolved: Resolved) -> None:
        """Refuse a checkpoint whose defaults would make other chunks from now on."""
        now = json.loads(json.dumps(dict(settings) | {"schedule": resolved.schedule.to_json()}))
        then = self.settings | {"schedule": self.document["schedule"]}
        names = sorted(
            name
            for name in (now.keys() | then.keys()) - _MAY_DIFFER
            if now.get(name) != then.get(name)
        )
        if names:
            shown = ", ".join(f"{name} {then.get(name)!r}, now {now.get(name)!r}" for name in names)
            raise ValueError(f"session {self.path} was saved with {shown}; it cannot go on here")

    def state(self, resolved: Resolved, device: torch.device) -> StreamState:
        index, track = self.document["index"], self.document["track"]
        history = History.from_state(self._part("history"))
        rows, columns = latent_size(resolved.height, resolved.width)
        shape = history.window().frames.shape
        if (shape[0], shape[1], *shape[3:]) != (1, LATENT_CHANNELS, rows, columns):
            raise CheckpointCorruptError(f"session {self.path} is damaged: history {list(shape)}")
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise CheckpointCorruptError(f"session {self.path} is damaged: index {index!r}")
        drift = None
        if resolved.anti_drift is not None:
            drift = DriftMonitor.from_state(resolved.anti_drift, self._part("drift"))
        return StreamState(
            index=index,
            history=history.to(device),
            random=self.tensors["random"].cpu(),
            track=(
                None
                if track is None
                else PromptTrack(_tuples(track["changes"]), _tuples(track["transitions"]))
            ),
            drift=drift,
        )

    def _part(self, name: str) -> dict[str, Tensor]:
        start = f"{name}."
        return {
            key.removeprefix(start): value
            for key, value in self.tensors.items()
            if key.startswith(start)
        }


def _request_json(request: Request, resolved: Resolved) -> dict[str, Any]:
    """The fields of ``request`` that were given, ready for JSON."""
    values: dict[str, Any] = {"num_frames": resolved.num_frames}
    for item in fields(request):
        value = getattr(request, item.name)
        if item.name not in _NOT_SAVED and value != item.default:
            plain = is_dataclass(value) and not isinstance(value, type)
            values[item.name] = asdict(value) if plain else value
    return values


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _fingerprint(pipeline: Pipeline) -> str:
    """A digest of where and in what the model computes; samples of all weights and adapters."""
    digest = hashlib.sha256(f"{pipeline.device.type} {pipeline.dtype}".encode())
    for module in (pipeline.transformer, pipeline.codec.network, pipeline.text_encoder):
        if module is not None:
            digest.update(_sampled(module))
    for adapter, scale in adapters_of(pipeline.transformer).acting:
        gains = [factors.gain for factors in adapter.factors.values()]
        digest.update(f"{scale} {gains}".encode() + _sampled(adapter))
    return digest.hexdigest()


def _sampled(module: nn.Module) -> bytes:
    """Names, types and shapes of all weights and sixteen spread values of each."""
    names, values = [], []
    for name, tensor in module.state_dict().items():
        names.append(f"{name} {tensor.dtype} {list(tensor.shape)}")
        flat = tensor.detach().reshape(-1)
        values.append(flat[:: max(1, flat.numel() // 16)][:16].float())
    return "\n".join(names).encode() + torch.cat(values).cpu().numpy().tobytes()
