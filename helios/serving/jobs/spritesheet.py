"""``variant=spritesheet``: small pictures of a whole video in one JPEG, one for each chunk."""

from __future__ import annotations

import math
from pathlib import Path

from helios.files import atomic_path

__all__ = ["spritesheet"]

TILE = (160, 160)
MOST_TILES = 120
COLUMNS = 10


def spritesheet(video: Path, target: Path) -> None:
    """Write the pictures with which the chunks of ``video`` begin, row by row.

    Only key frames are decoded, and every chunk begins with one; of a long video every second,
    third … is shown, so that there are at most 120.

    Args:
        video: one of ours.
        target: a JPEG, whole or not there.

    Raises:
        OSError: if one cannot be read or the other not be written.
    """
    import av
    from PIL import Image

    tiles: list[Image.Image] = []
    every = 1
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.codec_context.skip_frame = "NONKEY"
            for number, frame in enumerate(container.decode(stream)):
                if number % every:
                    continue
                tile = Image.fromarray(frame.to_ndarray(format="rgb24"))
                tile.thumbnail(TILE)
                tiles.append(tile)
                if len(tiles) > MOST_TILES:
                    tiles, every = tiles[::2], 2 * every
    except av.error.FFmpegError as error:
        raise OSError(f"{video} cannot be read: {error}") from None
    if not tiles:
        raise OSError(f"{video} shows nothing")
    width, height = tiles[0].size
    columns = min(COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    with atomic_path(target) as draft:
        sheet.save(draft, "JPEG", quality=75)
