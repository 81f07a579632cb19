"""Reading and writing of pictures and videos: round trips, limits, interruption."""

import os
import struct
import subprocess
import sys
import textwrap
import time
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from helios import media
from helios.errors import InputError
from helios.media import (
    FragmentEncoder,
    VideoWriter,
    check_output,
    read_image,
    read_settings,
    read_video,
)

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


# ------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("count", [1, 33, 100])
def test_round_trip_keeps_count_size_rate_colours_and_settings(tmp_path: Path, count: int) -> None:
    frames = film(count)
    settings = {"prompt": 'ein Bär ☃ "quoted"\n', "seed": 2**62, "steps": [2, 2, 2]}
    path = write(tmp_path / "out.mp4", frames, 24, **settings)
    back, fps = read_video(path)
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    assert fps == 24
    assert read_settings(path) == settings
    assert names(tmp_path) == ["out.mp4"]
    # Flat areas come back in the right matrix and range: a wrong one is off by 10 and more.
    assert np.abs(back[:, 2:12].astype(int) - frames[:, 2:12]).max() <= 4
    # Every frame is itself, not its neighbour.
    difference = back[:, None, 4::8].astype(np.int16) - frames[None, :, 4::8]
    assert (np.abs(difference).mean((2, 3, 4)).argmin(1) == np.arange(count)).all()


def test_finished_file_is_plain_h264_with_the_index_in_front(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", film(50), 30)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.frames, stream.start_time, stream.average_rate) == (50, 0, 30)
        assert container.duration == pytest.approx(50 / 30 * 1e6, abs=1000)
        assert stream.codec_context.colorspace == 1  # BT.709, as converted
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([index / 30 for index in range(50)], abs=1e-4)


@pytest.mark.parametrize("fps", [1, 8, 23.976, 60])
def test_rates(tmp_path: Path, fps: float) -> None:
    assert read_video(write(tmp_path / "o.mp4", film(5), fps))[1] == pytest.approx(fps)


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.mp4", film(40), seed=1).read_bytes()
    assert write(tmp_path / "b.mp4", film(40), seed=1).read_bytes() == first


def test_partial_plays_while_written(tmp_path: Path) -> None:
    frames = film(120)
    with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, 24, {"seed": 3}) as writer:
        writer.write(frames[:99])
        assert not writer.path.exists()
        deadline, seen = time.monotonic() + 30, 0
        while seen < 60 and time.monotonic() < deadline:
            time.sleep(0.05)
            if writer.partial.exists() and writer.partial.stat().st_size > 4096:
                back, fps = read_video(writer.partial)
                seen = len(back)
        assert 60 <= seen <= 99
        assert fps == 24
        assert np.abs(back[:, 2:12].astype(int) - frames[:seen, 2:12]).max() <= 4
        assert read_settings(writer.partial) == {"seed": 3}
        writer.write(frames[99:])
    assert names(tmp_path) == ["out.mp4"]
    assert len(read_video(tmp_path / "out.mp4")[0]) == 120


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interruption_leaves_a_complete_partial(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    def run() -> None:
        with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, metadata={"seed": 3}) as writer:
            writer.write(film(33))
            writer.write(film(33))
            raise interruption

    with pytest.raises(interruption):
        run()
    assert names(tmp_path) == ["out.partial.mp4"]
    back, _ = read_video(tmp_path / "out.partial.mp4")
    assert len(back) == 66
    assert read_settings(tmp_path / "out.partial.mp4") == {"seed": 3}


def test_failure_leaves_nothing_and_keeps_its_own_error(tmp_path: Path) -> None:
    def run(path: Path, overwrite: bool = False) -> None:
        with VideoWriter(path, WIDTH, HEIGHT, overwrite=overwrite) as writer:
            writer.write(film(33))
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match=r"^diverged$"):
        run(tmp_path / "out.mp4")
    assert names(tmp_path) == []
    write(tmp_path / "old.mp4", film(5))
    before = (tmp_path / "old.mp4").read_bytes()
    with pytest.raises(RuntimeError, match=r"^diverged$"):
        run(tmp_path / "old.mp4", overwrite=True)
    assert names(tmp_path) == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == before


def test_existing_output_needs_overwrite(tmp_path: Path) -> None:
    path = write(tmp_path / "out.mp4", film(5))
    with pytest.raises(FileExistsError, match=r"out\.mp4 already exists"):
        VideoWriter(path, WIDTH, HEIGHT)
    with VideoWriter(path, WIDTH, HEIGHT, overwrite=True) as writer:
        writer.write(film(7))
    assert len(read_video(path)[0]) == 7


def test_output_that_appears_meanwhile_is_kept_and_so_is_the_video(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT)
    writer.write(film(7))
    writer.path.write_bytes(b"other")
    with pytest.raises(FileExistsError, match="appeared meanwhile"):
        writer.close()
    assert writer.path.read_bytes() == b"other"
    assert len(read_video(writer.partial)[0]) == 7


def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "out.mp4").symlink_to(tmp_path / "target")
    (tmp_path / "out.partial.mp4").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        check_output(tmp_path / "out.mp4")
    with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, overwrite=True) as writer:
        writer.write(film(3))
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert not (tmp_path / "out.mp4").is_symlink()
    assert len(read_video(tmp_path / "out.mp4")[0]) == 3


def test_impossible_outputs_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    cases: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "missing" / "out.mp4", FileNotFoundError, "does not exist"),
        (tmp_path / "file" / "out.mp4", FileNotFoundError, "does not exist"),
        (tmp_path / "folder.mp4", IsADirectoryError, "is a folder"),
        (tmp_path / "out.gif", ValueError, r"NAME\.mp4"),
        (tmp_path / "out", ValueError, r"NAME\.mp4"),
        (tmp_path / "a\0b.mp4", OSError, "cannot write .*Invalid argument"),
        (tmp_path / ("n" * 300 + ".mp4"), OSError, "cannot write .*too long"),
    ]
    for path, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            VideoWriter(path, WIDTH, HEIGHT)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file", "folder.mp4"]


@pytest.mark.parametrize("size", [(95, 64), (96, 63), (0, 64), (96, -2)])
def test_odd_sizes_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be even"):
        VideoWriter(tmp_path / "out.mp4", *size)


def test_wrong_frames_and_rates_are_refused(tmp_path: Path) -> None:
    for fps in (0, -1, 1000, float("nan")):
        with pytest.raises(ValueError, match="fps"):
            VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT, fps)
    writer = VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT)
    for frames in (film(2).astype(np.float32), film(2)[0], film(2, 32, 32)):
        with pytest.raises(ValueError, match="uint8"):
            writer.write(frames)
    with pytest.raises(ValueError, match="no frame"):
        writer.close()
    assert names(tmp_path) == []


def test_the_callers_buffer_may_be_reused(tmp_path: Path) -> None:
    buffer = np.full((33, HEIGHT, WIDTH, 3), 200, np.uint8)
    with VideoWriter(tmp_path / "out.mp4", WIDTH, HEIGHT) as writer:
        writer.write(buffer)
        buffer[:] = 0
    assert read_video(tmp_path / "out.mp4")[0].mean() == pytest.approx(200, abs=3)


def test_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
        import resource, sys
        import numpy as np
        from helios.media import VideoWriter
        writer = VideoWriter(sys.argv[1], 96, 64)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        noise = np.random.default_rng(0)
        try:
            with writer:
                for _ in range(20):
                    writer.write(noise.integers(0, 255, (33, 64, 96, 3), dtype=np.uint8))
        except OSError as error:
            print(type(error).__name__, error.errno, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "out.mp4")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"OSError 27 cannot write {tmp_path / 'out.mp4'}: File too large\n"
    assert done.stderr == ""
    assert names(tmp_path) == []


def test_no_room_for_the_second_copy_keeps_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("helios.media.plain_mp4", full)
    path = write(tmp_path / "out.mp4", film(40), seed=5)
    assert names(tmp_path) == ["out.mp4"]
    assert len(read_video(path)[0]) == 40
    assert read_settings(path) == {"seed": 5}


def test_joined_fragments_are_the_file_frame_for_frame(tmp_path: Path) -> None:
    frames = film(99)
    path = tmp_path / "whole.mp4"
    with VideoWriter(path, WIDTH, HEIGHT, 24, {"seed": 3}, fragment_frames=33) as writer:
        writer.write(frames[:50])
        writer.write(frames[50:])
    encoder = FragmentEncoder(WIDTH, HEIGHT, 24, {"seed": 3})
    parts = [encoder.encode(frames[start : start + 33]) for start in (0, 33, 66)]
    joined = tmp_path / "joined.mp4"
    joined.write_bytes(encoder.header + b"".join(parts))
    assert np.array_equal(read_video(joined)[0], read_video(path)[0])
    assert read_settings(joined) == {"seed": 3}
    assert encoder.mime.startswith('video/mp4; codecs="avc1.64')
    with av.open(str(joined)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert [p.pts * p.time_base * 24 for p in packets] == list(range(99))
        assert [i for i, p in enumerate(packets) if p.is_keyframe] == [0, 33, 66]


def test_a_stream_taken_up_elsewhere_gives_the_same_fragment() -> None:
    frames = film(66)
    first = FragmentEncoder(WIDTH, HEIGHT, 30)
    first.encode(frames[:33])
    later = FragmentEncoder(WIDTH, HEIGHT, 30, start=33)
    mine, other = first.encode(frames[33:]), later.encode(frames[33:])
    at = mine.index(b"mfhd") + 8  # they differ in the number of the fragment only
    assert mine[:at] + mine[at + 4 :] == other[:at] + other[at + 4 :]
    assert later.header == first.header


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_over_2000_frames(tmp_path: Path) -> None:
    batch = film(50, 128, 192)
    with VideoWriter(tmp_path / "out.mp4", 192, 128) as writer:
        for _ in range(10):
            writer.write(batch)
        before = resident()
        for _ in range(30):  # 220 MB, handed over faster than it is encoded
            writer.write(batch)
        grown = resident() - before
    assert grown < 16 << 20
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].frames == 2000


def test_names_with_odd_characters(tmp_path: Path) -> None:
    for name in ("a:b%03d é.mp4", "-out.mp4", "http:x.mp4", "UPPER.MP4"):
        assert len(read_video(write(tmp_path / name, film(3)))[0]) == 3


# ------------------------------------------------------------------------------------- reading


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
        "too big": (file("big.mp4", good + b"\0" * media.VIDEO_BYTES), "at most 64 MiB"),
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
        "big": (file("big.png", png + b"\0" * media.IMAGE_BYTES), "at most 20 MiB"),
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
        assert time.monotonic() - start < 1, case


def test_importing_media_loads_neither_library() -> None:
    program = "import sys, helios.media; print(*{'av', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_rate_is_exact_for_ntsc(tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "o.mp4", film(3), 24000 / 1001))) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)
