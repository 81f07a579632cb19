"""Reading of pictures and videos: forms, limits, hostile files."""

import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from helios.errors import InputError
from helios.media import (
    read_image,
    read_settings,
    read_video,
)
from helios.media.reading import IMAGE_BYTES, VIDEO_BYTES

from .films import HEIGHT, WIDTH, film, foreign, write


def test_settings_of_other_videos_are_empty(tmp_path: Path) -> None:
    assert read_settings(foreign(tmp_path / "a.mp4", film(3))) == {}
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        container.metadata["comment"] = "[1, 2]"
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(film(1)[0], format="rgb24")))
        container.mux(stream.encode(None))
    assert read_settings(tmp_path / "b.mp4") == {}
    with pytest.raises(InputError, match="does not exist"):
        read_settings(tmp_path / "none.mp4")


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv444p"),
        ("a.mkv", "libx265", "yuv420p10le"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mp4", "libsvtav1", "yuv420p"),
    ],
)
def test_videos_of_other_writers(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    frames = film(12)
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    back, fps = read_video(foreign(tmp_path / name, frames, codec, pix_fmt, **options))
    assert back.shape == frames.shape
    assert fps == pytest.approx(24)
    assert np.abs(back.astype(int) - frames).mean() < 8


def test_max_frames_stops_early_and_reads_beyond_the_limits(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mp4", np.repeat(film(20, 16, 16), 80, axis=0), 60)
    assert len(read_video(path, max_frames=7)[0]) == 7
    assert len(read_video(path, max_frames=10_000)[0]) == 1600
    with pytest.raises(InputError, match=r"more than 1452 frames"):
        read_video(path)
    slow = write(tmp_path / "slow.mp4", film(70, 16, 16), 1)
    with pytest.raises(InputError, match=r"70 seconds long"):
        read_video(slow)
    with pytest.raises(ValueError, match="max_frames"):
        read_video(path, max_frames=0)


def test_rotation_is_applied(tmp_path: Path) -> None:
    frames = film(3)
    data = bytearray(write(tmp_path / "a.mp4", frames).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[matrix : matrix + 36])[:5] == (65536, 0, 0, 0, 65536)
    # As telephones write it: the stored picture is to be turned clockwise by 90 degrees.
    data[matrix : matrix + 36] = struct.pack(
        ">9i", 0, 65536, 0, -65536, 0, 0, HEIGHT << 16, 0, 1 << 30
    )
    (tmp_path / "b.mp4").write_bytes(data)
    turned, _ = read_video(tmp_path / "b.mp4")
    assert turned.shape == (3, WIDTH, HEIGHT, 3)
    upright, _ = read_video(tmp_path / "a.mp4")
    assert (turned == np.rot90(upright, -1, (1, 2))).all()


def test_cover_reduces_large_frames_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", film(3, 256, 384))
    whole, _ = read_video(path)
    for cover, shape in {(64, 96): (64, 96), (64, 64): (64, 96), (32, 96): (64, 96)}.items():
        small, _ = read_video(path, cover=cover)
        assert small.shape == (3, *shape, 3)
        means = whole.reshape(3, 64, 4, 96, 4, 3).mean((2, 4))
        assert np.abs(small - means).mean() < 2
    for cover in ((256, 384), (257, 10), (4000, 4000)):
        assert (read_video(path, cover=cover)[0] == whole).all()


def bad_videos(folder: Path) -> dict[str, tuple[Path, str]]:
    good = write(folder / "good.mp4", film(60)).read_bytes()

    def file(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    (folder / "directory.mp4").mkdir()
    no_index = good.replace(b"moov", b"junk", 1)
    return {
        "missing": (folder / "none.mp4", "does not exist"),
        "address": (Path("http://169.254.169.254/a.mp4"), "does not exist"),
        "impossible name": (Path("a\0b\n.mp4"), "'a\\x00b\\n.mp4' does not exist"),
        "folder": (folder / "directory.mp4", "is not a file"),
        "device": (Path("/dev/zero"), "is not a file"),
        "empty": (file("empty.mp4", b""), "is empty"),
        "text": (file("text.mp4", b"just some words, not a video"), "is not an MP4"),
        "playlist": (file("list.mp4", b"#EXTM3U\n#EXTINF:1\n/etc/passwd\n"), "is not an MP4"),
        "noise": (file("noise.mp4", b"\0\0\0\x18ftyp" + bytes(range(256)) * 9), "damaged"),
        "matroska header only": (file("h.mkv", b"\x1a\x45\xdf\xa3" + b"\0" * 99), "damaged"),
        "without index": (file("index.mp4", no_index), "damaged"),
        "cut": (file("cut.mp4", good[: len(good) * 2 // 3]), "damaged"),
        "last byte missing": (file("cut1.mp4", good[:-1]), "damaged"),
        "cut early": (file("cut2.mp4", good[:700]), "damaged"),
        "old codec": (foreign(folder / "old.mp4", film(3), "mpeg4"), "coded as mpeg4"),
        "animation": (file("a.mp4", b"GIF89a" + b"\0" * 20), "is not an MP4"),
        "too wide": (foreign(folder / "w.mp4", film(1, 16, 4098)), "at most 4096"),
        "too small": (foreign(folder / "s.mp4", film(1, 8, 32)), "at least 16"),
        "too big": (file("big.mp4", good + b"\0" * VIDEO_BYTES), "at most 64 MiB"),
    }


def test_bad_videos_are_refused_in_one_line(tmp_path: Path) -> None:
    for case, (path, words) in bad_videos(tmp_path).items():
        with pytest.raises(InputError) as caught:
            read_video(path)
        message = str(caught.value)
        assert words in message, (case, message)
        assert message.startswith("video "), case
        assert "\n" not in message, case
        assert "Errno" not in message, case
        assert "avcodec" not in message, case


def test_picture_round_trips(tmp_path: Path) -> None:
    pixels = film(1)[0]
    for name in ("a.png", "a.bmp", "a.webp", "wrong-name.jpg"):
        form = {"a.webp": {"lossless": True}, "wrong-name.jpg": {"format": "PNG"}}.get(name, {})
        Image.fromarray(pixels).save(tmp_path / name, **form)
        back = read_image(tmp_path / name)
        assert back.dtype == np.uint8
        assert (back == pixels).all(), name
        assert back.flags.writeable
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - pixels).mean() < 4


def test_picture_forms_become_upright_rgb(tmp_path: Path) -> None:
    pixels = film(1)[0]
    grey = pixels[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == grey[..., None]).all()
    wide = grey.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "grey16.png")
    assert (read_image(tmp_path / "grey16.png") == grey[..., None]).all()

    alpha = np.full(grey.shape, 255, np.uint8)
    alpha[:20] = 0
    Image.fromarray(np.dstack((pixels, alpha))).save(tmp_path / "alpha.png")
    back = read_image(tmp_path / "alpha.png")
    assert (back[:20] == 255).all()
    assert (back[20:] == pixels[20:]).all()

    palette = Image.fromarray(pixels).quantize(8)
    palette.save(tmp_path / "palette.png")
    assert (read_image(tmp_path / "palette.png") == np.asarray(palette.convert("RGB"))).all()
    palette.save(tmp_path / "see-through.gif", transparency=palette.getpixel((0, 0)))
    assert (read_image(tmp_path / "see-through.gif")[0, 0] == 255).all()

    frames = [Image.fromarray(frame) for frame in film(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (read_image(tmp_path / "a.webp") == film(1)[0]).all()

    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - pixels).mean() < 8

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == np.rot90(pixels, -1)).all()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 4096))
        + chunk(b"IEND", b"")
    )


def bad_pictures(folder: Path) -> dict[str, tuple[Path, str]]:
    def file(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    picture = Image.fromarray(film(1)[0])
    picture.save(folder / "good.jpg")
    picture.save(folder / "good.png")
    picture.save(folder / "good.tif")
    Image.new("RGB", (8, 40)).save(folder / "small.png")
    (folder / "directory.png").mkdir()
    jpeg, png = (folder / "good.jpg").read_bytes(), (folder / "good.png").read_bytes()
    return {
        "missing": (folder / "none.png", "does not exist"),
        "folder": (folder / "directory.png", "is not a file"),
        "impossible name": (Path("n" * 300), "cannot be read: File name too long"),
        "empty": (file("empty.png", b""), "is empty"),
        "text": (file("text.png", b"just some words"), "is not a picture"),
        "drawing": (
            file("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            "is not a picture",
        ),
        "other type": (folder / "good.tif", "is not a picture"),
        "video": (write(folder / "v.mp4", film(2)), "is not a picture"),
        "cut jpeg": (file("cut.jpg", jpeg[: len(jpeg) // 3]), "damaged"),
        "cut png": (file("cut.png", png[: len(png) // 2]), "damaged"),
        "bomb": (file("bomb.png", png_header(50_000, 50_000)), "too large"),
        "half a bomb": (file("half.png", png_header(8_000, 12_000)), "too large"),
        "many pixels": (file("many.png", png_header(8_000, 8_000)), "at most 8192"),
        "long side": (file("long.png", png_header(9_000, 20)), "at most 8192"),
        "small": (folder / "small.png", "at least 16"),
        "big": (file("big.png", png + b"\0" * IMAGE_BYTES), "at most 20 MiB"),
    }


def test_bad_pictures_are_refused_in_one_line(tmp_path: Path) -> None:
    for case, (path, words) in bad_pictures(tmp_path).items():
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError) as caught:
                read_image(path)
        message = str(caught.value)
        assert words in message, (case, message)
        assert message.startswith("image "), case
        assert "\n" not in message, case
        assert "Errno" not in message, case
        assert time.monotonic() - start < 5, case


def test_importing_media_loads_neither_library() -> None:
    program = "import sys, helios.media; print(*{'av', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
