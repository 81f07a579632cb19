from array import array
from itertools import pairwise

import numpy as np
import pytest
import torch

from helios.evaluation.drift import curves, ends, picks, summarise
from helios.evaluation.meter import SERIES, Measured, Meter
from helios.evaluation.metrics.scene_judge import SceneJudge
from helios.evaluation.prompts import BenchPrompt, scene_prompts
from helios.evaluation.train_judge import judge_config


def video(frames: int, seed: int = 0, height: int = 32, width: int = 48) -> torch.Tensor:
    """Soft blobs on the move, uint8 ``[2, frames, H, W, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(2, 3, generator=generator)[:, None, None, None] * 6
    t = torch.arange(frames).view(1, -1, 1, 1, 1) / 9
    y = torch.linspace(0, 4, height).view(1, 1, -1, 1, 1)
    x = torch.linspace(0, 6, width).view(1, 1, 1, -1, 1)
    return (127 + 90 * torch.sin(x + t + phase) * torch.cos(y - t + phase)).byte()


def metered(frames: torch.Tensor, parts: list[int], **options: object) -> list[Measured]:
    meter = Meter([BenchPrompt("one"), BenchPrompt("two")], **options)
    for part in frames.split(parts, dim=1):
        meter.add(part)
    assert meter.frames == frames.shape[1]
    return meter.finish()


def test_chunk_by_chunk_is_all_at_once() -> None:
    frames = video(77)
    whole = metered(frames, [77])
    for parts in ([33, 33, 11], [1, 2, 1, 40, 33], [33, 44]):
        for one, other in zip(whole, metered(frames, parts), strict=True):
            for name in SERIES:
                np.testing.assert_allclose(
                    one.series[name], other.series[name], rtol=1e-4, atol=1e-4, err_msg=name
                )


def test_what_a_frame_cannot_have_is_no_number() -> None:
    series = metered(video(33), [33])[0].series
    assert np.isnan(series["step"][0])
    assert np.isnan(series["amplitude"][0])
    assert np.isfinite(series["amplitude"][1:]).all()
    # Odd frames are made from their neighbours, and known one later.
    assert np.flatnonzero(np.isfinite(series["smoothness"])).tolist() == list(range(2, 33, 2))
    assert series["away"][0] == 0


def test_videos_of_a_batch_do_not_mix() -> None:
    frames = video(40)
    both = metered(frames, [40])
    meter = Meter([BenchPrompt("two")])
    meter.add(frames[1:])
    alone = meter.finish()[0]
    for name in SERIES:
        np.testing.assert_allclose(both[1].series[name], alone.series[name], rtol=1e-4, atol=1e-4)


def test_of_a_long_video_only_numbers_are_kept() -> None:
    def held(value: object) -> int:
        if isinstance(value, torch.Tensor | np.ndarray):
            return int(value.nbytes)
        if isinstance(value, array):
            return len(value) * value.itemsize
        if isinstance(value, dict):
            return sum(map(held, value.values()))
        if isinstance(value, list | tuple):
            return sum(map(held, value))
        return held(vars(value)) if isinstance(value, Measured) else 0

    meter = Meter([BenchPrompt("one"), BenchPrompt("two")], keep=(5,))
    sizes = []
    for part in video(33 * 6, height=16, width=24).split(33, dim=1):
        meter.add(part)
        sizes.append(held(vars(meter)))
    growth = {later - earlier for earlier, later in pairwise(sizes)}
    # Two videos, 33 frames, four bytes for each series.
    assert growth == {2 * 33 * 4 * len(SERIES)}


def test_frames_that_are_asked_for_are_kept_and_no_others() -> None:
    frames = video(70)
    measured = metered(frames, [33, 33, 4], keep=(0, 34, 69))
    assert sorted(measured[1].kept) == [0, 34, 69]
    assert np.array_equal(measured[1].kept[34], frames[1, 34].numpy())
    assert measured[0].small is not None
    assert measured[0].small.shape == (5, 4, 6, 3)


def test_a_judge_speaks_of_whole_chunks_of_scenes() -> None:
    torch.manual_seed(0)
    judge = SceneJudge(judge_config()).eval()
    prompts = (scene_prompts(1)[0], BenchPrompt("no scene"))
    meter = Meter(prompts, judge=judge)
    for part in video(70).split([33, 33, 4], dim=1):
        meter.add(part)
    known, unknown = meter.finish()
    assert len(known.verdicts) == len(known.features) == 2  # four frames are no chunk
    assert {"shape", "motion", "all four"} <= known.verdicts[0].keys()
    assert unknown.verdicts == []
    assert len(unknown.features) == 2


def test_networks_score_frames_where_they_stand() -> None:
    frames = video(40)
    score = {"aesthetic": lambda part: part.float().mean(dim=(1, 2, 3))}
    measured = metered(frames, [33, 7], scores=score)
    expected = frames[1].float().mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(measured[1].series["aesthetic"], expected, rtol=1e-5)


def test_wrong_frames_are_refused() -> None:
    meter = Meter([BenchPrompt("one")])
    with pytest.raises(ValueError, match=r"\[1, n, H, W, 3\]"):
        meter.add(video(33))


# --- from series to figures


def flat(frames: int, **rows: np.ndarray) -> Measured:
    series = {name: np.zeros(frames, np.float32) for name in SERIES} | rows
    return Measured(series={name: np.asarray(row, np.float32) for name, row in series.items()})


def test_drift_is_between_the_first_and_the_last_fifteen_percent() -> None:
    row = np.arange(100.0)
    assert ends(row) == (7.0, 92.0)
    figures = summarise(flat(100, saturation=row), 100)
    assert figures["saturation"] == {"value": 49.5, "first": 7.0, "last": 92.0}
    # A shorter length sees the beginning only.
    assert summarise(flat(100, saturation=row), 40)["saturation"]["last"] == 36.5


def test_colours_drift_by_ciede2000() -> None:
    lightness = np.full(100, 50.0)
    a = np.where(np.arange(100) < 50, 2.5, 0.0)
    b = np.where(np.arange(100) < 50, 0.0, -2.5)
    figures = summarise(flat(100, lightness=lightness, a=a, b=b), 100)
    assert figures["delta_e"]["value"] == pytest.approx(4.3065, abs=1e-3)


def test_accuracy_per_chunk_and_over_its_parts() -> None:
    measured = flat(99)
    measured.verdicts = [
        {"shape": True, "motion": True, "all four": False},
        {"shape": True, "motion": False, "all four": False},
        {"shape": False, "motion": False, "all four": False},
    ]
    figures = summarise(measured, 99)
    assert figures["caption"] == {"value": 0.5, "first": 1.0, "last": 0.0}
    assert figures["shape"]["value"] == pytest.approx(2 / 3)
    assert summarise(measured, 66)["caption"]["last"] == 0.5
    assert curves(measured)["caption"].tolist() == [1.0, 0.5, 0.0]


def test_clip_scores_stand_beside_their_ends() -> None:
    clips = {"semantic": {"whole": 0.3, "first": 0.31, "last": 0.25}}
    figures = summarise(flat(50), 50, clips)
    assert figures["semantic"] == {"value": 0.3, "first": 0.31, "last": 0.25}


def test_curves_are_means_of_chunks() -> None:
    measured = flat(70, noise=np.repeat([1.0, 2.0, 3.0], [33, 33, 4]))
    assert curves(measured)["noise"].tolist() == [1, 2, 3]
    assert curves(measured)["delta_e"].tolist() == [0, 0, 0]
    assert "a" not in curves(measured)


def test_picked_frames_are_spread_over_their_part() -> None:
    assert picks(100, 3) == [0, 50, 99]
    assert picks(100, 2, "first") == [0, 14]
    assert picks(100, 2, "last") == [85, 99]
    assert picks(33, 8, "last")[-1] == 32
    with pytest.raises(ValueError, match="whole, first or last"):
        picks(100, 3, "middle")


def test_a_video_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="has no first 51"):
        summarise(flat(50), 51)
