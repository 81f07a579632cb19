"""What training eats: scenes made on the fly, as frames and as latents."""

from helios.data.batch import Batch
from helios.data.stream import (
    RingConfig,
    SceneFrames,
    SceneLatents,
    encode_scenes,
    to_frames,
)

__all__ = [
    "Batch",
    "RingConfig",
    "SceneFrames",
    "SceneLatents",
    "encode_scenes",
    "to_frames",
]
