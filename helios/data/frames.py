"""Frames for the autoencoder: windows of scenes that are rendered, or of videos that are decoded.

Both live in the ring of `helios.data.stream`: training draws from it at random, and new clips
replace the oldest ones.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from helios.conditioning import fit
from helios.data.precompute import Clip
from helios.data.scenes import Split, render, sample_scenes
from helios.data.stream import RANKS, Pieces, Ring, RingConfig, finish, to_frames
from helios.errors import InputError
from helios.geometry import CHUNK_FRAMES
from helios.media import read_video

__all__ = ["ClipFrames", "FrameRing", "SceneFrames"]


class FrameRing(ABC):
    """Clips of 33 frames in a ring on the device: an endless seeded stream.

    Args:
        config: ring and pictures.
        device: where clips are kept.
        seed: of clips and draws.
        rank: whose stream this is; ranks see different clips.
    """

    def __init__(
        self, config: RingConfig, device: torch.device, *, seed: int, rank: int = 0
    ) -> None:
        self.config = config
        self.device = device
        self._seed = seed * RANKS + rank
        self._generator = torch.Generator(device).manual_seed(self._seed)
        self._ring = Ring(self._pieces, config, self._generator)
        self.prepare = self._ring.prepare
        self.state_dict = self._ring.state_dict
        self.load_state_dict = self._ring.load_state_dict

    @abstractmethod
    def _pieces(self, index: int) -> Pieces:
        """Group ``index`` of the endless list, piece by piece."""

    def group(self, index: int) -> Tensor:
        """Group ``index`` of the endless list: uint8 ``[group, 33, H, W, 3]``."""
        (clip,) = finish(self._pieces(index))
        return clip

    def batch(self, count: int, frames: int) -> Tensor:
        """``count`` windows of ``frames`` frames at random times, ``[B, 3, frames, H, W]``."""
        (store,), places = self._ring.draw(count)
        latest = CHUNK_FRAMES - frames
        starts = torch.randint(
            latest + 1, (count, 1), generator=self._generator, device=self.device
        )
        times = starts + torch.arange(frames, device=self.device)
        return to_frames(store[places[:, None], times])


class SceneFrames(FrameRing):
    """Rendered frames; see `FrameRing`.

    Args:
        config: ring and pictures.
        device: where clips are rendered and kept.
        seed: of scenes and draws.
        rank: whose stream this is.
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
        super().__init__(config, device, seed=seed, rank=rank)
        self._split: Split = split
        self._compiled = compiled

    def _pieces(self, index: int) -> Pieces:
        """A group here is one section, hence one piece."""
        yield from ()
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


class ClipFrames(FrameRing):
    """Frames of videos, each in the order of another shuffle in every epoch; see `FrameRing`.

    A group is decoded beside the training, by one thread, and taken clip by clip.

    Args:
        clips: the first 33 frames of each are used, cut to the middle and resized.
        config: ring and pictures; ``supersampling`` is not read.
        device: where clips are kept.
        seed: of the order and the draws.
        rank: whose stream this is.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        config: RingConfig,
        device: torch.device,
        *,
        seed: int,
        rank: int = 0,
    ) -> None:
        super().__init__(config, device, seed=seed, rank=rank)
        self._clips = clips
        self._decoder = ThreadPoolExecutor(1, "clips")

    def _pieces(self, index: int) -> Pieces:
        """A piece is one clip."""
        first = index * self.config.group
        wanted = [self._clips[self._place(first + n)] for n in range(self.config.group)]
        waiting = [self._decoder.submit(_decode, clip, self.config) for clip in wanted]
        parts: list[Tensor] = []
        for one in waiting:
            if parts:
                yield
            parts.append(one.result().to(self.device))
        return (torch.stack(parts),)

    def _place(self, number: int) -> int:
        """Which clip is ``number`` of the endless list."""
        epoch, place = divmod(number, len(self._clips))
        order = list(range(len(self._clips)))
        random.Random(f"helios clips {self._seed} {epoch}").shuffle(order)
        return order[place]


def _decode(clip: Clip, config: RingConfig) -> Tensor:
    """Bytes ``[33, H, W, 3]``.

    Raises:
        InputError: if the video cannot be read or is shorter.
    """
    size = (config.height, config.width)
    frames, _ = read_video(clip.video, clip.start + CHUNK_FRAMES, cover=size)
    frames = frames[clip.start :]
    if len(frames) < CHUNK_FRAMES:
        raise InputError(
            f"{clip.video} has fewer than {CHUNK_FRAMES} frames from frame {clip.start} on; "
            "leave it out"
        )
    pixels = fit(frames, *size)[0].movedim(0, -1)
    return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
