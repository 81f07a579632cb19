"""What training eats: scenes made on the fly, and what was computed before."""

from helios.data.batch import Batch, Leg, Trajectories
from helios.data.clips import ClipLatents
from helios.data.frames import ClipFrames, FrameRing, SceneFrames
from helios.data.latents import ShardReader, ShardWriter, read_shard_settings
from helios.data.precompute import (
    LATENTS,
    Clip,
    ClipConfig,
    read_clips,
    write_latents,
    write_scene_latents,
    write_shards,
)
from helios.data.stream import (
    RingConfig,
    SceneLatents,
    encode_scenes,
    to_frames,
)
from helios.data.trajectories import (
    TRAJECTORIES,
    Teacher,
    TrajectoryConfig,
    record_section,
    write_trajectories,
)

__all__ = [
    "LATENTS",
    "TRAJECTORIES",
    "Batch",
    "Clip",
    "ClipConfig",
    "ClipFrames",
    "ClipLatents",
    "FrameRing",
    "Leg",
    "RingConfig",
    "SceneFrames",
    "SceneLatents",
    "ShardReader",
    "ShardWriter",
    "Teacher",
    "Trajectories",
    "TrajectoryConfig",
    "encode_scenes",
    "read_clips",
    "read_shard_settings",
    "record_section",
    "to_frames",
    "write_latents",
    "write_scene_latents",
    "write_shards",
    "write_trajectories",
]
