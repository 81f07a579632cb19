import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helios.evaluation.heliosbench import Bench, takes_of
from helios.evaluation.metrics.networks import ClipScore, Networks
from helios.evaluation.prompts import BenchPrompt, scene_prompts
from helios.evaluation.sources import ModelSource, Take, TruthSource, fingerprint
from helios.evaluation.speed import counted, measure_speed
from helios.evaluation.store import Record, Results, digest
from helios.geometry import token_count
from helios.pipeline import Pipeline

PROMPTS = [
    BenchPrompt(f"a {colour} {shape}")
    for colour, shape in zip(
        ("red", "green", "blue", "red", "blue"),
        ("ball", "cube", "cone", "cone", "ball"),
        strict=True,
    )
]


class Waves:
    """Frames from nothing but the seed; counts what it is asked for."""

    work = None

    def __init__(self, name: str = "waves", fail_after: int | None = None) -> None:
        self.name = name
        self.made: list[int] = []
        self.fail_after = fail_after

    def identity(self) -> dict[str, Any]:
        return {"kind": "waves"}

    def chunks(self, takes: Sequence[Take], count: int) -> Iterator[torch.Tensor]:
        generators = [torch.Generator().manual_seed(take.seed) for take in takes]
        for _ in range(count):
            if self.fail_after is not None and len(self.made) >= self.fail_after:
                raise KeyboardInterrupt
            yield torch.stack(
                [torch.randint(0, 256, (33, 32, 48, 3), generator=g).byte() for g in generators]
            )
        self.made += [take.seed for take in takes]


def bench(folder: Path, **options: Any) -> Bench:
    options.setdefault("lengths", (40, 66))
    return Bench(results=Results(folder), say=lambda line: None, **options)


def test_seeds_do_not_depend_on_how_many_there_are() -> None:
    few, many = takes_of(PROMPTS[:2], seed=7), takes_of(PROMPTS, repetitions=3, seed=7)
    assert [take.seed for take in few] == [7, 8]
    assert set(few) <= set(many)
    assert len({take.seed for take in many}) == 15


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    takes = takes_of(PROMPTS)
    stopped = Waves(fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path).measure(stopped, takes)
    assert stopped.made == [0, 1]
    assert len(list(tmp_path.glob("*.json"))) == 2
    rest = Waves()
    second = bench(tmp_path)
    with pytest.raises(ValueError, match="3 of 5 videos are not measured yet"):
        second.records(rest, takes)
    second.measure(rest, takes)
    assert rest.made == [2, 3, 4]
    whole = Waves()
    other = bench(tmp_path / "other", batch_size=3)
    other.measure(whole, takes)
    for one, same in zip(second.records(rest, takes), other.records(whole, takes), strict=True):
        ours, theirs = dict(one.values), dict(same.values)
        assert ours.pop("stream")
        assert theirs.pop("stream")
        assert ours["figures"].keys() == {"40", "66"}
        assert ours == theirs
        assert one.curves.keys() == same.curves.keys()
        assert one.strip == same.strip
        np.testing.assert_array_equal(one.small, same.small)


def test_half_a_record_is_none(tmp_path: Path) -> None:
    takes = takes_of(PROMPTS[:1])
    first = bench(tmp_path)
    first.measure(Waves(), takes)
    key = first.key(Waves(), takes[0])
    for ending in ("json", "safetensors", "webp"):
        path = tmp_path / f"{key}.{ending}"
        content = path.read_bytes()
        path.unlink()
        assert first.results.get(key) is None
        path.write_bytes(content)
    (tmp_path / f"{key}.json").write_text('{"schema"')
    assert first.results.get(key) is None
    again = Waves()
    first.measure(again, takes)
    assert again.made == [0]
    assert first.results.get(key) is not None
    assert not list(tmp_path.glob(".*"))


def test_records_are_filed_under_everything_that_made_them(tmp_path: Path) -> None:
    (take,) = takes_of(PROMPTS[:1])
    usual = bench(tmp_path)
    keys = {usual.key(Waves(), take)}
    keys.add(bench(tmp_path, lengths=(66,)).key(Waves(), take))
    keys.add(usual.key(Waves(), Take(take.prompt, 0, 0, 1)))
    keys.add(usual.key(Waves(), Take(PROMPTS[1], 0, 0, 0)))
    keys.add(usual.key(TruthSource(32, 48, torch.device("cpu")), take))
    keys.add(bench(tmp_path, networks=Networks(used={"semantic": "x"})).key(Waves(), take))
    assert len(keys) == 6
    assert usual.key(Waves("another name"), take) in keys
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_records_can_be_made_afresh(tmp_path: Path) -> None:
    takes = takes_of(PROMPTS[:2])
    bench(tmp_path).measure(Waves(), takes)
    anew = Bench(results=Results(tmp_path, reuse=False), lengths=(40, 66), say=lambda line: None)
    source = Waves()
    anew.measure(source, takes)
    assert source.made == [0, 1]
    assert len(anew.records(source, takes)) == 2


def test_networks_see_the_frames_of_every_part(tmp_path: Path) -> None:
    seen = []

    def score(frames: torch.Tensor, prompt: str) -> float:
        seen.append((len(frames), prompt))
        return frames.float().mean().item() / 255

    networks = Networks(clips={"semantic": ClipScore(8, score, "x")}, used={"semantic": "x"})
    one = bench(tmp_path, lengths=(66,), networks=networks)
    takes = takes_of(PROMPTS[:1])
    one.measure(Waves(), takes)
    assert seen == [(8, PROMPTS[0].text)] * 3
    figures = one.records(Waves(), takes)[0].values["figures"]["66"]["semantic"]
    assert figures.keys() == {"value", "first", "last"}


def test_a_video_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    class Short(Waves):
        def chunks(self, takes, count):
            yield from super().chunks(takes, 1)

    with pytest.raises(ValueError, match="has 33 frames, 66 are to be measured"):
        bench(tmp_path).measure(Short(), takes_of(PROMPTS[:1]))
    assert not list(tmp_path.glob("*.json"))
    with pytest.raises(ValueError, match="at least 33 frames"):
        bench(tmp_path, lengths=(20,))


# --- sources


def test_a_model_s_videos_are_what_the_pipeline_makes(little: Pipeline, tmp_path: Path) -> None:
    folder = little.save(tmp_path / "model")
    source = ModelSource("ours", little, folder)
    takes = [Take(PROMPTS[k], k, 0, 30 + k) for k in (0, 1)]
    chunks = list(source.chunks(takes, 2))
    assert [tuple(chunk.shape) for chunk in chunks] == [(2, 33, 32, 48, 3)] * 2
    for row, take in enumerate(takes):
        video = little(take.prompt.text, num_frames=66, seed=take.seed)
        made = torch.cat([chunk[row] for chunk in chunks]).numpy()
        assert np.abs(made.astype(int) - video.frames.astype(int)).max() <= 1
    # Two steps of two branches over 9 x 2 x 3 tokens.
    assert source.work is not None
    assert source.work.passes == 4
    assert source.work.token_steps == 4 * token_count(9, 4, 6)


def test_a_model_is_known_by_its_weights(little: Pipeline, tmp_path: Path) -> None:
    first, second = little.save(tmp_path / "one"), little.save(tmp_path / "two")
    assert fingerprint(first) == fingerprint(second)
    weights = next((second / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (second / "manifest.json").unlink(missing_ok=True)
    assert fingerprint(first) != fingerprint(second)
    names = {
        digest(ModelSource("x", little, first, steps=steps, guidance=scale).identity())
        for steps in (None, 1, (1, 1, 1))
        for scale in (None, 1.0)
    }
    assert len(names) == 6


def test_renders_are_of_the_scene_and_its_likes() -> None:
    (take,) = takes_of(scene_prompts(1))
    size = (64, 96, torch.device("cpu"))
    (same,), (again,) = (list(TruthSource(*size).chunks([take], 1)) for _ in range(2))
    (other,) = list(TruthSource(*size, other=True).chunks([take], 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    with pytest.raises(ValueError, match="no scene behind"):
        next(TruthSource(*size).chunks([Take(PROMPTS[0], 0, 0, 0)], 1))


# --- speed


def test_speed_of_a_stream(little: Pipeline) -> None:
    speed = measure_speed(little, "a red ball", chunks=3, steps=1, guidance_scale=1.0)
    assert speed.chunks == 3
    assert speed.fps > 0
    assert speed.chunk >= speed.sample + speed.decode
    assert speed.memory > 2**20
    assert json.dumps(speed.to_json())
    with pytest.raises(ValueError, match="at least 2 chunks"):
        measure_speed(little, "a red ball", chunks=1)


def test_passes_are_counted_only_inside(little: Pipeline) -> None:
    with counted(little) as work:
        little("a red ball", num_frames=33, seed=0, steps=3, guidance_scale=1.0)
    little("a red ball", num_frames=33, seed=0, steps=1, guidance_scale=1.0)
    assert work.passes == 3


def test_features_and_pictures_survive_the_disk(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)
    small = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    curves = {"noise": np.array([1.0, np.nan, 3.0], np.float32)}
    record = Record({"index": 3, "prompt": "x"}, features, small, b"picture", curves)
    results = Results(tmp_path)
    results.put("key", record)
    found = results.get("key")
    assert found is not None
    assert (found.index, found.prompt, found.strip) == (3, "x", b"picture")
    np.testing.assert_array_equal(found.features, features)
    np.testing.assert_array_equal(found.small, small)
    np.testing.assert_array_equal(found.curves["noise"], curves["noise"])
