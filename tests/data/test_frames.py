import numpy as np
import pytest
import torch

from helios.conditioning import fit
from helios.data import Clip, ClipFrames, RingConfig, SceneFrames, to_frames
from helios.errors import InputError
from helios.media import VideoWriter, read_video

CPU = torch.device("cpu")
SMALL = RingConfig(
    height=32, width=48, supersampling=1, group=2, first_groups=2, groups=3, refresh_every=2
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five videos, each of one grey that it alone has, and one that is too short."""
    folder = tmp_path_factory.mktemp("videos")
    for number, count in enumerate((33, 40, 33, 36, 33, 20)):
        with VideoWriter(folder / f"{number}.mp4", 64, 48, 24, {}) as writer:
            writer.write(np.full((count, 48, 64, 3), 40 * number + 20, dtype=np.uint8))
    return [Clip(video=folder / f"{number}.mp4", caption="grey") for number in range(6)]


def test_frames_are_seeded_and_ranks_differ():
    streams = [SceneFrames(SMALL, CPU, seed=0, rank=rank) for rank in (0, 0, 1)]
    for stream in streams:
        stream.prepare()
    first, again, other = (stream.batch(3, 9) for stream in streams)
    assert first.shape == (3, 3, 9, 32, 48)
    assert -1 <= first.min() < first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_are_consecutive_frames():
    stream = SceneFrames(SMALL, CPU, seed=0)
    stream.prepare()
    clips = to_frames(torch.cat([stream.group(i) for i in range(2)]))
    window = stream.batch(1, 5)[0]
    matches = [
        (clip, start)
        for clip in range(4)
        for start in range(29)
        if torch.equal(clips[clip, :, start : start + 5], window)
    ]
    assert len(matches) >= 1


def test_every_video_comes_once_in_an_epoch_and_ranks_have_orders_of_their_own(videos):
    config = RingConfig(height=32, width=48, group=5, first_groups=1, groups=1)
    found = [
        [
            ClipFrames(videos[:5], config, CPU, seed=0, rank=rank).group(epoch)[:, 0, 0, 0, 0]
            for epoch in range(2)
        ]
        for rank in range(2)
    ]
    for group in (group for rank in found for group in rank):
        expected = torch.arange(5) * 40 + 20
        assert (group.int().sort().values - expected).abs().max() <= 3
    assert not torch.equal(*found[0])
    assert not torch.equal(found[0][0], found[1][0])


def test_a_clip_is_the_part_of_its_video_cut_and_resized(tmp_path):
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "a.mp4", 80, 48, 24, {}) as writer:
        writer.write(rng.integers(0, 255, (40, 48, 80, 3), dtype=np.uint8))
    clip = Clip(video=tmp_path / "a.mp4", caption="noise", start=5)
    config = RingConfig(height=32, width=48, group=1, first_groups=1, groups=1)
    made = to_frames(ClipFrames([clip], config, CPU, seed=0).group(0))
    frames, _ = read_video(clip.video, 38, cover=(32, 48))
    torch.testing.assert_close(made, fit(frames[5:], 32, 48), atol=1 / 127, rtol=0)


def test_a_resumed_ring_of_videos_goes_on_exactly(videos):
    config = RingConfig(height=32, width=48, group=2, first_groups=1, groups=2, refresh_every=1)
    straight = ClipFrames(videos[:5], config, CPU, seed=3)
    straight.prepare()
    for _ in range(4):
        straight.batch(2, 9)
    resumed = ClipFrames(videos[:5], config, CPU, seed=3)
    resumed.load_state_dict({k: v.clone() for k, v in straight.state_dict().items()})
    resumed.prepare()
    for _ in range(6):
        assert torch.equal(straight.batch(3, 9), resumed.batch(3, 9))


def test_a_video_that_is_too_short_is_named(videos):
    config = RingConfig(height=32, width=48, group=1, first_groups=1, groups=1)
    with pytest.raises(InputError, match=r"5\.mp4 has fewer than 33 frames"):
        ClipFrames(videos[5:], config, CPU, seed=0).group(0)
