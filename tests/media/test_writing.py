"""Writing of videos: round trips, interruption, refusals, fragments."""

import os
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helios.media import (
    FragmentEncoder,
    VideoWriter,
    check_output,
    plain_mp4,
    read_settings,
    read_video,
)

from .films import HEIGHT, WIDTH, film, names, write


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
        (tmp_path / "file" / "out.mp4", NotADirectoryError, "is not a folder"),
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
    def full(sources: list[tuple[Path, int | None]], target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("helios.media.writing.plain_mp4", full)
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


def test_copied_frames_of_two_files_are_one_video(tmp_path: Path) -> None:
    frames = film(80)
    one = write(tmp_path / "one.mp4", frames[:50], seed=1)
    other = write(tmp_path / "other.mp4", frames[33:], seed=2)
    plain_mp4([(one, 33), (other, None)], tmp_path / "both.mp4")
    both, rate = read_video(tmp_path / "both.mp4")
    assert rate == 24
    assert np.array_equal(both[:33], read_video(one)[0][:33])
    assert np.array_equal(both[33:], read_video(other)[0])
    assert read_settings(tmp_path / "both.mp4") == {"seed": 1}


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


def test_rate_is_exact_for_ntsc(tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "o.mp4", film(3), 24000 / 1001))) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)
