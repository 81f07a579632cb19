"""Videos to write and to read."""

from pathlib import Path

import av
import numpy as np

from helios.media import VideoWriter

HEIGHT, WIDTH = 64, 96


def film(frames: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A bright square that moves over flat colours: every frame is told by its square."""
    rows, columns = np.mgrid[:height, :width]
    result = np.empty((frames, height, width, 3), np.uint8)
    result[:] = (220, 40, 60)
    result[:, : height // 4] = (20, 60, 200)
    for index in range(frames):
        down, right = divmod(10 + index, width)
        square = (abs(rows - height // 2 - 6 * down) < 8) & (abs(columns - right) < 8)
        result[index][square] = (240, 240, 80)
    return result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, frames: np.ndarray, fps: float = 24, **settings: object) -> Path:
    with VideoWriter(path, frames.shape[2], frames.shape[1], fps, settings) as writer:
        for start in range(0, len(frames), 33):
            writer.write(frames[start : start + 33])
    return path


def foreign(
    path: Path, frames: np.ndarray, codec: str = "libx264", pix_fmt: str = "yuv420p", **options: str
) -> Path:
    """A video by another writer."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path
