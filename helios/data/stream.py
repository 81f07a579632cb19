"""Scenes as an endless stream of training data, made on the device while training goes on.

Rendering every clip for one use would cost more than the training itself, so clips live in a ring
on the device: training draws from it at random, and every few batches the oldest group of clips
makes place for a new one. Group ``g`` is a pure function of the seed, the rank and ``g``; the whole
state of a stream is therefore how many groups were made and one random generator, and a resumed
stream renders again what its ring held.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from helios.data.batch import Batch
from helios.data.scenes import Scene, Split, caption, render, sample_scenes
from helios.geometry import CHUNK_FRAMES, CHUNK_LATENTS

if TYPE_CHECKING:
    from helios.codec import Codec

__all__ = ["RingConfig", "SceneFrames", "SceneLatents", "encode_scenes", "to_frames"]

RANKS = 4096
"""Room for ranks between two seeds."""

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions to token ids and mask, ``[B, L]`` each: ``TextEncoder.tokenize``."""


@dataclass(frozen=True, kw_only=True)
class RingConfig:
    """Size of the pictures and of the ring, and how fast its clips are replaced.

    Attributes:
        height, width: pixels; multiples of 16.
        supersampling: rays per pixel along one side.
        group: clips rendered together.
        first_groups: groups made before the first batch.
        groups: most groups that are kept.
        refresh_every: batches between new groups; 0: the first groups are all there is.
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
        make: the tensors of group ``g``, each ``[group, ...]``, always of the same shapes.
        config: how many groups.
        generator: of the draws, on the device.
    """

    def __init__(
        self,
        make: Callable[[int], tuple[Tensor, ...]],
        config: RingConfig,
        generator: torch.Generator,
    ) -> None:
        self._make = make
        self._config = config
        self._generator = generator
        self._made = 0
        self._drawn = 0
        self._store: tuple[Tensor, ...] = ()

    @property
    def clips(self) -> int:
        """Clips to draw from."""
        return min(self._made, self._config.groups) * self._config.group

    def prepare(self) -> None:
        """Make the first groups, or those that the state says were there."""
        self._made = max(self._made, self._config.first_groups)
        for index in range(max(0, self._made - self._config.groups), self._made):
            self._place(index)

    def draw(self, count: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The whole store and ``count`` random places in it; renews a group when it is time."""
        every = self._config.refresh_every
        if every and self._drawn and self._drawn % every == 0:
            self._place(self._made)
            self._made += 1
        self._drawn += 1
        generator = self._generator
        places = torch.randint(self.clips, (count,), generator=generator, device=generator.device)
        return self._store, places

    def state_dict(self) -> dict[str, Tensor]:
        """Groups made, batches drawn and the generator."""
        counts = torch.tensor([self._made, self._drawn], dtype=torch.int64)
        return {"counts": counts, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back; the groups come back with `prepare`."""
        self._made, self._drawn = state["counts"].tolist()
        self._generator.set_state(state["generator"].cpu().clone())

    def _place(self, index: int) -> None:
        tensors = self._make(index)
        size = self._config.group
        if not self._store:
            room = self._config.groups * size
            self._store = tuple(tensor.new_empty(room, *tensor.shape[1:]) for tensor in tensors)
        first = index % self._config.groups * size
        for whole, part in zip(self._store, tensors, strict=True):
            whole[first : first + size] = part


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
    parts = []
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
        parts.append(codec.encode(to_frames(clip)))
    return torch.cat(parts, dim=2)


class SceneFrames:
    """Rendered frames for the autoencoder: an endless seeded stream.

    Args:
        config: ring and pictures.
        device: where clips are rendered and kept.
        seed: of scenes and draws.
        rank: whose stream this is; ranks see different scenes.
        split: which attribute combinations.
        compiled: whether the renderer is compiled.
    """

    SECTIONS = 4

    def __init__(
        self,
        config: RingConfig,
        device: torch.device,
        *,
        seed: int,
        rank: int = 0,
        split: Split = "train",
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.device = device
        self._seed = seed * RANKS + rank
        self._split: Split = split
        self._compiled = compiled
        self._generator = torch.Generator(device).manual_seed(self._seed)
        self._ring = Ring(self.group, config, self._generator)
        self.prepare = self._ring.prepare
        self.state_dict = self._ring.state_dict
        self.load_state_dict = self._ring.load_state_dict

    def group(self, index: int) -> tuple[Tensor]:
        """Group ``index`` of the endless list: uint8 ``[group, 33, H, W, 3]``."""
        size = self.config.group
        scenes = sample_scenes(size, self._seed, split=self._split, start=index * size)
        clip = render(
            scenes,
            start=CHUNK_FRAMES * (index % self.SECTIONS),
            frames=CHUNK_FRAMES,
            height=self.config.height,
            width=self.config.width,
            device=self.device,
            supersampling=self.config.supersampling,
            compile=self._compiled,
        )
        return (clip,)

    def batch(self, count: int, frames: int) -> Tensor:
        """``count`` windows of ``frames`` frames at random times, ``[B, 3, frames, H, W]``."""
        (store,), places = self._ring.draw(count)
        latest = CHUNK_FRAMES - frames
        starts = torch.randint(
            latest + 1, (count, 1), generator=self._generator, device=self.device
        )
        times = starts + torch.arange(frames, device=self.device)
        return to_frames(store[places[:, None], times])


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
        self._ring = Ring(self.group, config, self._generator)
        self.prepare = self._ring.prepare
        self.state_dict = self._ring.state_dict
        self.load_state_dict = self._ring.load_state_dict

    def group(self, index: int) -> tuple[Tensor, Tensor]:
        """Group ``index`` of the endless list.

        Returns:
            Latents ``[group, 16, 9 S, h, w]`` float16 and token ids ``[group, wordings, L]``.
        """
        size = self.config.group
        scenes = sample_scenes(size, self._seed, split=self._split, start=index * size)
        latents = encode_scenes(
            scenes, self._codec, self._sections, self.config, compiled=self._compiled
        )
        rng = random.Random(f"helios captions {self._seed} {index}")
        texts = [caption(scene, rng) for scene in scenes for _ in range(self._wordings)]
        tokens, _ = self._tokenize(texts)
        return latents.half(), tokens.unflatten(0, (size, -1)).to(latents.device)

    def batch(self) -> Batch:
        """Random clips of the ring, each with a random one of its wordings."""
        (latents, tokens), places = self._ring.draw(self._batch_size)
        shape = (self._batch_size,)
        generator = self._generator
        words = torch.randint(self._wordings, shape, generator=generator, device=generator.device)
        if latents.shape[2] % CHUNK_LATENTS:
            raise ValueError(f"{latents.shape[2]} latent frames are not whole sections")
        return Batch(latents=latents[places], tokens=tokens[places, words])
