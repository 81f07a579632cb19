"""Work done once before training: clips and their captions to shards of latents and embeddings.

Shards say what made them, and a run that was stopped goes on where it was (training specification,
2.1).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from helios.conditioning import clean_prompt, fit
from helios.data.latents import ShardWriter
from helios.data.scenes import caption, sample_scenes
from helios.data.stream import RingConfig, encode_scenes
from helios.errors import DataError, InputError
from helios.geometry import CHUNK_FRAMES, check_size
from helios.media import read_video

if TYPE_CHECKING:
    from helios.codec import AutoencoderConfig, Codec
    from helios.conditioning import TextEncoder
    from helios.distributed import World

__all__ = [
    "LATENTS",
    "Clip",
    "ClipConfig",
    "codec_digest",
    "read_clips",
    "write_latents",
    "write_scene_latents",
    "write_shards",
]

LATENTS = "latents"
"""Kind of a folder of encoded clips."""
STORED = torch.float16
"""What latents and embeddings are stored in."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A part of a video file and what it shows.

    Attributes:
        video: the file.
        caption: its text.
        start: its first frame.
    """

    video: Path
    caption: str
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How clips are encoded.

    Attributes:
        height, width: pixels; the middle of every frame, cut to this shape and resized.
        sections: of 33 frames, each encoded on its own; what is longer is cut, a clip that is
            shorter is left out.
        shard: clips in a file.
    """

    height: int = 384
    width: int = 640
    sections: int = 5
    shard: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be encoded."""
        check_size(self.height, self.width)
        for name in ("sections", "shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.sections * CHUNK_FRAMES


VIDEOS = (".mp4", ".mov", ".webm", ".mkv")
"""Endings of the files that a folder of videos is searched for."""


def read_clips(path: Path) -> list[Clip]:
    """The clips in a folder of videos, or in a file of JSON Lines.

    In a folder every video's caption is in a text file of the same name: ``cat.mp4``, ``cat.txt``.
    A line of a file is ``{"video": …, "caption": …, "start": 0}``; a video's path counts from the
    folder of that file, and several lines may name parts of one video.

    Raises:
        InputError: naming the line or the file that is wrong.
    """
    return _in_folder(path) if path.is_dir() else _in_file(path)


def _in_folder(path: Path) -> list[Clip]:
    clips = []
    for video in sorted(file for file in path.iterdir() if file.suffix.lower() in VIDEOS):
        words = video.with_suffix(".txt")
        try:
            text = clean_prompt(words.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{video} has no caption that can be read ({error}); write it to {words.name}"
            ) from None
        clips.append(Clip(video=video, caption=text))
    if not clips:
        raise InputError(f"{path} holds no videos (looked for {', '.join(VIDEOS)})")
    return clips


def _in_file(path: Path) -> list[Clip]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    clips = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            start = entry.get("start", 0)
            video, text = path.parent / entry["video"], clean_prompt(entry["caption"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} line {number} is no clip ({error!r})") from None
        if type(start) is not int or start < 0:
            raise InputError(f"{path} line {number}: start must be a frame number, got {start!r}")
        clips.append(Clip(video=video, caption=text, start=start))
    if not clips:
        raise InputError(f"{path} holds no clips")
    return clips


@torch.no_grad()
def write_latents(
    codec: Codec,
    text: TextEncoder,
    clips: Sequence[Clip],
    config: ClipConfig,
    out: Path,
    world: World,
    say: Callable[[str], None],
) -> None:
    """Encode clips and captions into shards: ``latents [N, 16, 9 S, h, w]``, ``text [N, L, D]``.

    Args:
        codec: encodes, on the device of ``world``.
        text: encodes the captions.
        clips: what is encoded.
        config: how.
        out: folder of shards; a run that was stopped goes on, one that is complete is left alone.
        world: this rank; ranks share the shards.
        say: called with a line for every shard, and for every clip that is left out.

    Raises:
        InputError: for a video that cannot be read.
        DataError: if ``out`` holds something else, or no clip is long enough.
    """
    listed = "\n".join(f"{clip.video}\t{clip.start}\t{clip.caption}" for clip in clips)
    settings = {
        "kind": LATENTS,
        "clips": len(clips),
        "clips_sha256": hashlib.sha256(listed.encode()).hexdigest(),
        **_encoders(codec, text),
        **asdict(config),
    }

    def make(first: int, count: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        kept, latents = [], []
        for clip in clips[first : first + count]:
            encoded = _encode(codec, clip, config)
            if encoded is None:
                say(f"{clip.video} is left out: it has fewer than {config.frames} frames")
            else:
                kept.append(clip.caption)
                latents.append(encoded.to("cpu", STORED))
        if not kept:
            raise DataError(
                f"none of the clips {first + 1} to {first + count} has {config.frames} frames; "
                "give longer ones, or lower --sections"
            )
        return _shard(torch.cat(latents), text, kept)

    write_shards(ShardWriter(out, settings), len(clips), config.shard, make, world, say)


@torch.no_grad()
def write_scene_latents(
    codec: Codec,
    text: TextEncoder,
    count: int,
    config: ClipConfig,
    out: Path,
    world: World,
    say: Callable[[str], None],
    *,
    seed: int = 0,
) -> None:
    """The same shards from procedural scenes that training may show; see `write_latents`.

    Args:
        codec: encodes, on the device of ``world``.
        text: encodes the captions.
        count: how many scenes.
        config: size and sections.
        out: folder of shards.
        world: this rank; ranks share the shards.
        say: called with a line for every shard.
        seed: of scenes and captions.

    Raises:
        DataError: if ``out`` holds something else.
    """
    settings = {"kind": LATENTS, "scenes": count, "seed": seed}
    settings |= _encoders(codec, text) | asdict(config)
    size = RingConfig(height=config.height, width=config.width)

    def make(first: int, number: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        scenes = sample_scenes(number, seed, start=first)
        captions = [
            caption(scene, random.Random(f"helios scene latents {seed} {first + index}"))
            for index, scene in enumerate(scenes)
        ]
        latents = encode_scenes(scenes, codec, config.sections, size)
        return _shard(latents.to("cpu", STORED), text, captions)

    write_shards(ShardWriter(out, settings), count, config.shard, make, world, say)


def codec_digest(config: AutoencoderConfig) -> str:
    """Which autoencoder latents come from: its shape and its latent statistics, in any dtype."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()


def _encoders(codec: Codec, text: TextEncoder) -> dict[str, Any]:
    """What a reader of the shards needs to know of both."""
    return {"codec": codec_digest(codec.config), "text_dim": text.dim}


def _shard(
    latents: Tensor, text: TextEncoder, captions: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one file."""
    embeddings = text.encode(captions).to("cpu", STORED)
    return {"latents": latents, "text": embeddings}, {"captions": json.dumps(captions)}


def _encode(codec: Codec, clip: Clip, config: ClipConfig) -> Tensor | None:
    """Latents ``[1, 16, 9 S, h, w]``, or none for a clip that is too short."""
    size = (config.height, config.width)
    frames, _ = read_video(clip.video, clip.start + config.frames, cover=size)
    frames = frames[clip.start :]
    if len(frames) < config.frames:
        return None
    sections = []
    for first in range(0, config.frames, CHUNK_FRAMES):
        pixels = fit(frames[first : first + CHUNK_FRAMES], *size)
        sections.append(codec.encode(pixels.to(codec.device)))
    return torch.cat(sections, dim=2)


def write_shards(
    writer: ShardWriter,
    count: int,
    shard: int,
    make: Callable[[int, int], tuple[Mapping[str, Tensor], Mapping[str, str]]],
    world: World,
    say: Callable[[str], None],
) -> None:
    """Make the shards that are missing, every rank its own, then the manifest.

    Args:
        writer: of the folder.
        count: examples in all.
        shard: examples of a file.
        make: the tensors and the metadata of ``(first, count)`` examples.
        world: this rank.
        say: called with a line for every shard.

    Raises:
        OSError: if one cannot be written; on every rank, whichever it happened on.
    """
    if world.is_main:
        writer.start()
    world.barrier()
    firsts = list(range(0, count, shard))
    failure: OSError | None = None
    for index, first in enumerate(firsts):
        if index % world.size != world.rank or writer.has(index):
            continue
        tensors, metadata = make(first, min(shard, count - first))
        try:
            writer.write(index, tensors, metadata)
        except OSError as error:
            failure = error
            break
        say(f"shard {index + 1} of {len(firsts)}")
    world.together(failure, OSError("another rank could not write its shards"))
    if world.is_main:
        writer.finish()
    world.barrier()
