"""Scenes as an endless stream of training data, made on the device while training goes on.

Rendering every clip for one use would cost more than the training itself, so clips live in a ring
on the device: training draws from it at random, and the oldest group of clips makes place for a new
one now and then. A group is made in pieces, one every few batches, so that no batch waits long; on
CUDA the pieces run in a stream of their own beside the training steps that are already queued.

Group ``g`` is a pure function of the seed, the rank and ``g``; the whole state of a stream is
therefore how many groups and pieces were made and one random generator, and a resumed stream
renders again what its ring held.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from helios.data.batch import Batch
from helios.data.scenes import Scene, Split, caption, render, sample_scenes
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS

if TYPE_CHECKING:
    from helios.codec import Codec

__all__ = ["RANKS", "Pieces", "Ring", "RingConfig", "SceneLatents", "encode_scenes", "to_frames"]

RANKS = 4096
"""Room for ranks between two seeds."""

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions to token ids and mask, ``[B, L]`` each: ``TextEncoder.tokenize``."""

Pieces: TypeAlias = Generator[None, None, tuple[Tensor, ...]]
"""Work on a group: pauses between its pieces and returns its tensors."""


@dataclass(frozen=True, kw_only=True)
class RingConfig:
    """Size of the pictures and of the ring, and how fast its clips are replaced.

    Attributes:
        height, width: pixels; multiples of 16.
        supersampling: rays per pixel along one side.
        group: clips rendered together.
        first_groups: groups made before the first batch.
        groups: most groups that are kept.
        refresh_every: batches between pieces of a new group; 0: the first groups are all there
            is. A piece is a section of 33 frames of every clip of the group.
    """

    height: int = 128
    width: int = 192
    supersampling: int = 2
    group: int = 16
    first_groups: int = 64
    groups: int = 256
    refresh_every: int = 32

    def __post_init__(self) -> None:
        """Refuse a ring that cannot turn."""
        for name in ("height", "width"):
            if getattr(self, name) < 16 or getattr(self, name) % 16:
                raise ValueError(f"{name} must be a multiple of 16, got {getattr(self, name)}")
        for name in ("supersampling", "group", "first_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.groups < self.first_groups:
            raise ValueError(
                f"groups ({self.groups}) must not be less than first_groups ({self.first_groups})"
            )
        if self.refresh_every < 0:
            raise ValueError(f"refresh_every must not be negative, got {self.refresh_every}")


class Ring:
    """Tensors of the newest groups, on the device.

    Args:
        make: works on group ``g`` piece by piece; its tensors are each ``[group, ...]``, always of
            the same shapes.
        config: how many groups.
        generator: of the draws, on the device.
    """

    def __init__(
        self,
        make: Callable[[int], Pieces],
        config: RingConfig,
        generator: torch.Generator,
    ) -> None:
        self._make = make
        self._config = config
        self._generator = generator
        self._made = 0
        self._drawn = 0
        self._pieces = 0
        self._work: Pieces | None = None
        self._done: tuple[Tensor, ...] | None = None
        self._store: tuple[Tensor, ...] = ()
        self._stream: torch.cuda.Stream | None = None

    @property
    def clips(self) -> int:
        """Clips to draw from."""
        return min(self._made, self._config.groups) * self._config.group

    def prepare(self) -> None:
        """Make the first groups and pieces, or those that the state says were there."""
        self._made = max(self._made, self._config.first_groups)
        for index in range(max(0, self._made - self._config.groups), self._made):
            self._place(index, finish(self._make(index)))
        if self._generator.device.type == "cuda":
            self._stream = torch.cuda.Stream(self._generator.device, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(self._generator.device))
        pieces, self._pieces = self._pieces, 0
        for _ in range(pieces):
            self._turn()

    def draw(self, count: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The whole store and ``count`` random places in it; makes a piece when it is time."""
        every = self._config.refresh_every
        if every and self._drawn and self._drawn % every == 0:
            self._turn()
        self._drawn += 1
        generator = self._generator
        places = torch.randint(self.clips, (count,), generator=generator, device=generator.device)
        return self._store, places

    def state_dict(self) -> dict[str, Tensor]:
        """Groups made, batches drawn, pieces of the next group, and the generator."""
        counts = torch.tensor([self._made, self._drawn, self._pieces], dtype=torch.int64)
        return {"counts": counts, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back; the groups come back with `prepare`."""
        self._made, self._drawn, self._pieces = state["counts"].tolist()
        self._generator.set_state(state["generator"].cpu().clone())

    def _turn(self) -> None:
        """Make the next piece of the next group; a whole group takes its place a turn later.

        By then the device has long made it, so that training does not wait for it.
        """
        if self._done is not None:
            if self._stream is not None:
                main = torch.cuda.current_stream(self._stream.device)
                main.wait_stream(self._stream)
                for tensor in self._done:
                    tensor.record_stream(main)
            self._place(self._made, self._done)
            self._made += 1
            self._pieces, self._work, self._done = 0, None, None
        with self._aside():
            if self._work is None:
                self._work = self._make(self._made)
            try:
                next(self._work)
            except StopIteration as end:
                self._done = end.value
        self._pieces += 1

    def _aside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _place(self, index: int, tensors: tuple[Tensor, ...]) -> None:
        size = self._config.group
        if not self._store:
            room = self._config.groups * size
            self._store = tuple(tensor.new_empty(room, *tensor.shape[1:]) for tensor in tensors)
        first = index % self._config.groups * size
        for whole, part in zip(self._store, tensors, strict=True):
            whole[first : first + size] = part


def finish(work: Pieces) -> tuple[Tensor, ...]:
    """All pieces of a group at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: tuple[Tensor, ...] = end.value
            return result


def to_frames(clip: Tensor) -> Tensor:
    """Bytes ``[B, T, H, W, 3]`` to float32 ``[B, 3, T, H, W]`` in [-1, 1]."""
    return clip.movedim(-1, 1).float().div_(127.5).sub_(1)


def encode_scenes(
    scenes: Sequence[Scene],
    codec: Codec,
    sections: int,
    config: RingConfig,
    *,
    compiled: bool = False,
) -> Tensor:
    """Latents ``[B, 16, 9 sections, h, w]`` of scenes, every section of 33 frames on its own.

    Args:
        scenes: what is rendered, from frame 0.
        codec: encodes, on its device.
        sections: of 33 frames.
        config: size and supersampling.
        compiled: whether the renderer is compiled.
    """
    return torch.cat(list(_sections(scenes, codec, sections, config, compiled)), dim=2)


def _sections(
    scenes: Sequence[Scene], codec: Codec, sections: int, config: RingConfig, compiled: bool
) -> Iterator[Tensor]:
    """Section after section of `encode_scenes`."""
    for section in range(sections):
        clip = render(
            scenes,
            start=CHUNK_FRAMES * section,
            frames=CHUNK_FRAMES,
            height=config.height,
            width=config.width,
            device=codec.device,
            supersampling=config.supersampling,
            compile=compiled,
        )
        yield codec.encode(to_frames(clip))


class SceneLatents:
    """Encoded clips with captions for the transformer: an endless seeded stream of batches.

    Args:
        config: ring and pictures.
        codec: encodes, on its device; frozen.
        tokenize: captions to token ids.
        sections: of 33 frames in a clip.
        wordings: of a clip's caption, one of which is drawn each time.
        batch_size: clips in a batch.
        seed: of scenes, captions and draws.
        rank: whose stream this is; ranks see different scenes.
        split: which attribute combinations.
        compiled: whether the renderer is compiled.
    """

    def __init__(
        self,
        config: RingConfig,
        codec: Codec,
        tokenize: Tokenize,
        *,
        sections: int,
        wordings: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        split: Split = "train",
        compiled: bool = False,
    ) -> None:
        self.config = config
        self._codec = codec
        self._tokenize = tokenize
        self._sections = sections
        self._wordings = wordings
        self._batch_size = batch_size
        self._seed = seed * RANKS + rank
        self._split: Split = split
        self._compiled = compiled
        self._generator = torch.Generator(codec.device).manual_seed(self._seed)
        self._ring = Ring(self._pieces, config, self._generator)
        self.prepare = self._ring.prepare
        self.state_dict = self._ring.state_dict
        self.load_state_dict = self._ring.load_state_dict

    def group(self, index: int) -> tuple[Tensor, Tensor]:
        """Group ``index`` of the endless list.

        Returns:
            Latents ``[group, 16, 9 S, h, w]`` float16 and token ids ``[group, wordings, L]``.
        """
        latents, tokens = finish(self._pieces(index))
        return latents, tokens

    def _pieces(self, index: int) -> Pieces:
        """A piece is one section of every clip."""
        size = self.config.group
        scenes = sample_scenes(size, self._seed, split=self._split, start=index * size)
        parts: list[Tensor] = []
        for part in _sections(scenes, self._codec, self._sections, self.config, self._compiled):
            if parts:
                yield
            parts.append(part.half())
        rng = random.Random(f"helios captions {self._seed} {index}")
        texts = [caption(scene, rng) for scene in scenes for _ in range(self._wordings)]
        tokens, _ = self._tokenize(texts)
        latents = torch.cat(parts, dim=2)
        return latents, tokens.unflatten(0, (size, -1)).to(latents.device)

    def batch(self) -> Batch:
        """Random clips of the ring, each with a random one of its wordings."""
        (latents, tokens), places = self._ring.draw(self._batch_size)
        shape = (self._batch_size,)
        generator = self._generator
        words = torch.randint(self._wordings, shape, generator=generator, device=generator.device)
        if latents.shape[2] % CHUNK_LATENTS:
            raise ValueError(f"{latents.shape[2]} latent frames are not whole sections")
        return Batch(latents=latents[places], tokens=tokens[places, words])
