"""How pixels, latents and tokens count: the only file that knows the ratios.

A video is made in chunks of 33 frames. The autoencoder keeps the first frame of a chunk and folds
every further four into one, so a chunk is 9 latent frames; in space eight pixels become one latent
cell, and two by two cells one token (specification "model and sampling", sections 2 and 7.1).
"""

import math

__all__ = [
    "CHUNK_FRAMES",
    "CHUNK_LATENTS",
    "FPS",
    "LATENT_CHANNELS",
    "SPATIAL_RATIO",
    "TEMPORAL_RATIO",
    "check_size",
    "chunk_count",
    "latent_frames",
    "latent_size",
    "pixel_frames",
    "size_multiple",
    "token_count",
]

CHUNK_FRAMES = 33
CHUNK_LATENTS = 9
LATENT_CHANNELS = 16
SPATIAL_RATIO = 8
TEMPORAL_RATIO = 4
PATCH = 2
FPS = 24


def latent_frames(num_frames: int) -> int:
    """Latent frames of ``num_frames`` pixel frames; ``num_frames`` must be 1 + a multiple of 4."""
    if num_frames < 1 or (num_frames - 1) % TEMPORAL_RATIO:
        raise ValueError(f"num_frames must be 1 + a multiple of {TEMPORAL_RATIO}, got {num_frames}")
    return 1 + (num_frames - 1) // TEMPORAL_RATIO


def pixel_frames(num_latents: int) -> int:
    """Pixel frames that ``num_latents`` latent frames of one chunk decode to."""
    return 1 + (num_latents - 1) * TEMPORAL_RATIO


def chunk_count(num_frames: int) -> int:
    """Chunks needed for at least ``num_frames`` frames."""
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    return math.ceil(num_frames / CHUNK_FRAMES)


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the latents of ``height`` x ``width`` pixels."""
    return height // SPATIAL_RATIO, width // SPATIAL_RATIO


def token_count(frames: int, rows: int, columns: int) -> int:
    """Tokens of a latent block ``[frames, rows, columns]`` under the (1, 2, 2) patch."""
    return frames * (rows // PATCH) * (columns // PATCH)


def size_multiple(scales: int) -> int:
    """Pixels that height and width must be a multiple of: 16 flat, 64 with three scales."""
    return SPATIAL_RATIO * PATCH * 2 ** (scales - 1)


def check_size(height: int, width: int, scales: int = 1) -> None:
    """Refuse a size that the autoencoder, the patches and the pyramid cannot divide.

    Raises:
        ValueError: naming both values and the nearest legal size.
    """
    multiple = size_multiple(scales)
    if height > 0 and width > 0 and height % multiple == 0 and width % multiple == 0:
        return
    near = [max(multiple, round(value / multiple) * multiple) for value in (width, height)]
    raise ValueError(
        f"size {width}x{height} is not possible: width and height must be positive multiples of "
        f"{multiple}; the nearest legal size is {near[0]}x{near[1]}"
    )
