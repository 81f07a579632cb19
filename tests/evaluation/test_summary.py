import math
from typing import Any

import numpy as np
import pytest

from helios.evaluation.pages.page import html, plots
from helios.evaluation.pages.tables import cell, markdown, tables
from helios.evaluation.store import Record
from helios.evaluation.suites import ArmSpec, Evaluation
from helios.evaluation.summary import Arm, compare, grades, summary

WIDTH = 4


def record(
    index: int,
    *,
    repetition: int = 0,
    sharp: float = 10.0,
    features: np.ndarray | None = None,
    chunks: int = 3,
    small: int = 0,
    right: float = 1.0,
) -> Record:
    """A video whose sharpness falls by one from its beginning to its end."""
    slope = np.linspace(sharp + 0.5, sharp - 0.5, chunks)
    values: dict[str, Any] = {
        "identity": {"kind": "model"},
        "prompt": f"prompt {index}",
        "index": index,
        "repetition": repetition,
        "work": {"passes": 6, "token_steps": 5000},
        "stream": {"seconds": [0.5] + [0.1] * 9, "memory": [2**20] * 10},
        "figures": {
            "99": {
                "sharpness": {"value": sharp, "first": sharp + 0.5, "last": sharp - 0.5},
                "smoothness": {"value": 0.985, "first": 0.99, "last": 0.97},
                "amplitude": {"value": 0.22, "first": 0.2, "last": 0.2},
                "flicker": {"value": None},
                "caption": {"value": right, "first": right, "last": right},
            }
        },
    }
    curves = {"sharpness": slope, "caption": np.full(chunks, right)}
    if features is None:
        features = np.random.default_rng(index + 100 * repetition).standard_normal((chunks, WIDTH))
    thumb = np.full((5, 2, 2, 3), small, np.uint8)
    return Record(values, features.astype(np.float16), thumb, b"picture", curves)


def arm(name: str, count: int = 20, *, offset: float = 0.0, seed: int = 0, **options: Any) -> Arm:
    rng = np.random.default_rng(seed)
    rows = [offset + rng.standard_normal((3, WIDTH)) for _ in range(count)]
    return Arm(
        name,
        [[record(k, sharp=10 + 3 * (k % 5), features=rows[k], **options) for k in range(count)]],
    )


def evaluation(*arms: Arm) -> Evaluation:
    values: dict[str, Any] = {
        "helios": "0",
        "suite": "drift",
        "title": "<a> & b",
        "date": "2026-01-01",
        "command": "helios evaluate a",
        "environment": {"device": "cpu", "torch": "2"},
        "settings": {"seed": 0},
        "prompts": 20,
        "lengths": [99],
        "order": [one.name for one in arms],
        "arms": {one.name: summary(one, [99], arms[-1]) for one in arms},
        "pairs": [compare(one, arms[0], 99, arms[-1]) for one in arms[1:-1]],
        "grades": {},
        "missing": {"semantic": "needs a network"},
    }
    values["grades"] = {arms[0].name: {"99": grades(values["arms"][arms[0].name], 99)}}
    return Evaluation(values, {one.name: [("prompt 0", b"x")] for one in arms})


def test_levels_differ_and_drift_does_not() -> None:
    found = summary(arm("a"), [99])
    figures = found["lengths"]["99"]["sharpness"]
    assert figures["value"]["value"] == pytest.approx(16)
    assert figures["value"]["high"] - figures["value"]["low"] > 2
    assert figures["change"] == {"value": -1, "low": -1, "high": -1, "n": 20}
    assert figures["drift"]["value"] == 1
    assert found["curves"]["sharpness change"]["mean"] == [0, -0.5, -1]
    assert found["curves"]["sharpness change"]["low"][2] == -1
    assert found["lengths"]["99"]["flicker"]["value"]["value"] is None
    assert found["lengths"]["99"]["caption"]["value"]["low"] < 1


def test_long_curves_are_thinned() -> None:
    long = Arm("long", [[record(0, chunks=2619), record(1, chunks=2619)]])
    found = summary(long, [99])
    assert len(found["curves"]["sharpness"]["mean"]) == 238
    assert found["curves"]["caption"]["mean"] == [1.0] * 238
    assert found["curves"]["caption"]["chunks per point"] == 11
    # 2,619 chunks last an hour.
    assert found["minutes"].keys() == {"1", "10", "30", "60"}
    minutes = [found["minutes"][m]["sharpness"]["value"] for m in ("1", "10", "30", "60")]
    assert minutes == sorted(minutes, reverse=True)
    assert minutes[0] == pytest.approx(10.5, abs=0.02)
    assert minutes[-1] == pytest.approx(9.5, abs=0.02)
    assert summary(arm("short"), [99])["minutes"] == {}


def test_distances_are_to_the_renders_and_unbiased() -> None:
    truth, same = arm("renders", 40), arm("same", 40, seed=1)
    other = arm("other", 40, offset=1.0, seed=2)
    near = summary(same, [99], truth)["sets"]["99"]["feature_distance"]
    far = summary(other, [99], truth)["sets"]["99"]["feature_distance"]
    assert near["low"] < 0 < near["high"]
    assert far["low"] > 0
    # Means are one apart in every feature.
    assert far["value"] == pytest.approx(WIDTH, rel=0.35)
    assert "feature_distance" not in summary(truth, [99], truth)["sets"]["99"]
    assert summary(arm("few", 8), [99], truth)["sets"]["99"] == {}
    kernel = summary(same, [99], truth)["sets"]["99"]["kernel_distance"]
    assert kernel["low"] < 0 < kernel["high"]


def test_pairs_are_of_the_same_prompts() -> None:
    theirs, ours = arm("theirs", 40), arm("ours", 40, offset=0.5, seed=3)
    shifted = Arm("ours", [[record(r.index, sharp=s(r) - 2) for r in ours.records]])
    pair = compare(shifted, theirs, 99)
    assert pair["figures"]["sharpness"]["value"] == {"value": -2, "low": -2, "high": -2, "n": 40}
    assert pair["figures"]["sharpness"]["change"]["value"] == 0
    assert "feature_distance_ratio" not in pair
    ratio = compare(ours, theirs, 99, arm("renders", 40, offset=2, seed=9))
    assert ratio["feature_distance_ratio"]["value"] < 1
    fewer = Arm("ours", [ours.records[:10]])
    assert compare(fewer, theirs, 99)["figures"]["sharpness"]["value"]["n"] == 10


def s(one: Record) -> float:
    return float(one.values["figures"]["99"]["sharpness"]["value"])


def test_trainings_are_averaged_and_shown_apart() -> None:
    trainings = [[record(k, sharp=level) for k in range(4)] for level in (10.0, 14.0)]
    found = summary(Arm("a", trainings), [99])
    entry = found["lengths"]["99"]["sharpness"]
    assert entry["value"]["value"] == 12
    assert entry["value of trainings"] == [10, 14]
    assert (found["videos"], found["prompts"], found["trainings"]) == (8, 4, 2)


def test_diversity_is_between_videos_of_one_prompt() -> None:
    several = [record(k, repetition=r, small=10 * r) for r in range(2) for k in range(3)]
    assert summary(Arm("a", [several]), [99])["sets"]["99"]["diversity"]["value"] == 10
    # Two trainings of one video each say nothing about diversity.
    apart = Arm("a", [[record(0, small=0)], [record(0, small=90)]])
    assert "diversity" not in summary(apart, [99])["sets"]["99"]


def test_grades_use_drifts_in_long_videos_only() -> None:
    found = summary(arm("a"), [99])
    grade = grades(found, 99)
    # 0.02 from 0.99 to 0.97.
    assert grade["ratings"] == {"amplitude": 5, "smoothness": 9, "drift smoothness": 9}
    assert grade["total"] is None
    assert "drift semantic" in grade["missing"]
    short = dict(found, lengths={"81": found["lengths"]["99"]})
    assert grades(short, 81)["ratings"] == {"amplitude": 5, "smoothness": 9}


def test_reports_say_it_all_and_escape_it() -> None:
    outcome = evaluation(arm("one", 20), arm("two", 20, seed=1), arm("renders", 20, seed=2))
    text = markdown(outcome.values)
    assert "| sharpness, 1e-4 | 16.00 (" in text
    assert "## two less one, 99 frames" in text
    assert "- semantic: needs a network" in text
    assert "No total without" in text
    page = html(outcome)
    assert "&lt;a&gt; &amp; b" in page
    assert "<a> & b" not in page
    titles = [table.title for table in tables(outcome.values)]
    assert "Time and memory over the length" in titles
    assert all(len(row) == len(t.header) for t in tables(outcome.values) for row in t.rows)
    drawn = plots(outcome.values)
    apart = {"caption against", "sharpness against"}
    assert apart < set(drawn) <= apart | {"caption", "sharpness change", "captions"}
    assert "sharpness, 1e-4, less one" in drawn["sharpness against"]
    assert "99 frames" in drawn["sharpness against"]
    assert "renders" not in drawn["sharpness against"]
    assert "Against one" in page


def test_a_model_alone_is_held_against_none() -> None:
    outcome = evaluation(arm("one", 20), arm("renders", 20, seed=2))
    assert not any(name.endswith("against") for name in plots(outcome.values))
    assert "Against" not in html(outcome)


def test_figures_are_written_as_people_write_them() -> None:
    estimate = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    assert cell("caption", estimate) == "50.0 (25.0–75.0)"
    assert cell("caption", estimate, signed=True) == "+50.0 (25.0–75.0)"
    below = {"value": -0.001, "low": -0.2, "high": 0.1, "n": 4}
    assert cell("delta_e", below, signed=True) == "0.00 (-0.20 to 0.10)"
    assert cell("delta_e", {"value": None, "low": None, "high": None, "n": 0}) == "–"
    assert cell("delta_e", None) == "–"
    assert cell("delta_e", {"value": 1.0, "low": None, "high": None, "n": 1}) == "1.00"
    assert not math.isnan(float(cell("fps", {"value": 24.0, "low": None})))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny", {"name": "tiny", "models": ("tiny",)}),
        ("runs/full", {"name": "full", "models": ("runs/full",)}),
        ("a=x,y@steps=2,2,2", {"name": "a", "models": ("x", "y"), "steps": (2, 2, 2)}),
        ("a=x@steps=25@guidance=3@prompts=16@seeds=2",
         {"steps": 25, "guidance": 3.0, "prompts": 16, "repetitions": 2}),
        ("owner/name@main@steps=4", {"models": ("owner/name@main",), "steps": 4}),
    ],
)  # fmt: skip
def test_arms_are_read(text: str, expected: dict[str, object]) -> None:
    spec = ArmSpec.parse(text)
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize("text", ["", "=x", "a=", "a=x,,y", "a=x@steps=two", "a=x@prompts=0"])
def test_arms_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="arm"):
        ArmSpec.parse(text)
