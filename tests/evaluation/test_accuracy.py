import math
import random

import pytest

from helios.data.scenes import COLOURS, MOTIONS, SETTINGS, SHAPES, sample_scenes, write
from helios.evaluation.accuracy import (
    ATTRIBUTES,
    Rate,
    assess,
    table_json,
    tables_markdown,
    tabulate,
    wilson_interval,
)
from helios.evaluation.reading import ObjectReading, Reading, reading_of, verdicts

Z = 1.959963984540054
SCENES = sample_scenes(900, seed=3, split="test")


@pytest.mark.parametrize(("right", "total"), [(1, 10), (37, 100), (950, 1000), (999, 1000)])
def test_wilson_interval_ends_where_the_score_test_does(right: int, total: int) -> None:
    # The interval holds exactly the shares q with (p - q)² <= z² q (1 - q) / n.
    share = right / total
    for end in wilson_interval(right, total):
        assert (share - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / total)
    low, high = wilson_interval(right, total)
    assert 0 < low < share < high < 1


@pytest.mark.parametrize("total", [1, 10, 1000])
def test_wilson_interval_at_both_ends(total: int) -> None:
    assert wilson_interval(0, total) == pytest.approx((0.0, Z**2 / (total + Z**2)))
    assert wilson_interval(total, total) == pytest.approx((total / (total + Z**2), 1.0))


def test_wilson_interval_without_observations_and_out_of_range() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert math.isnan(Rate(0, 0).share)
    assert Rate(0, 0).to_json()["share"] is None
    with pytest.raises(ValueError, match="between 0 and 3"):
        wilson_interval(4, 3)


def test_a_judge_that_tells_the_truth_scores_everything() -> None:
    table = assess(SCENES, [reading_of(scene) for scene in SCENES])
    assert {rate.share for rates in table.values() for rate in rates.values()} == {1.0}
    assert list(table) == ["overall", "one object", "two objects", "three objects"]
    assert all(rates["count"].total for rates in table.values())
    groups = [table[name]["count"].total for name in list(table)[1:]]
    assert sum(groups) == table["overall"]["count"].total == len(SCENES)


def test_a_judge_of_other_videos_scores_chance() -> None:
    readings = [reading_of(scene) for scene in SCENES]
    table = assess(SCENES, readings[1:] + readings[:1])["overall"]
    chance = {"main colour": COLOURS, "motion": MOTIONS, "setting": SETTINGS}
    for attribute, classes in chance.items():
        low, high = wilson_interval(table[attribute].right, table[attribute].total, z=4.0)
        assert low < 1 / len(classes) < high, attribute
    # The shape is looked up by colour, so both must agree by chance.
    assert table["shape"].share < 2.5 / len(SHAPES)
    assert table["all four"].share < 0.01


def test_verdicts_object_by_object() -> None:
    scene = next(scene for scene in SCENES if len(scene.objects) == 2)
    main, other = scene.objects
    truth = reading_of(scene)
    wrong = next(shape for shape in SHAPES if shape != other.shape)
    objects = dict(truth.objects) | {other.colour: ObjectReading(wrong, other.size, other.material)}
    seen = verdicts(scene, Reading(objects, main.colour, truth.motion, truth.setting, truth.camera))
    assert {name for name, right in seen.items() if not right} == {"every shape"}
    gone = verdicts(
        scene,
        Reading(
            {other.colour: truth.objects[other.colour]},
            main.colour,
            truth.motion,
            truth.setting,
            truth.camera,
        ),
    )
    assert {name for name, right in gone.items() if right} == {"motion", "setting", "camera"}


def test_what_a_caption_does_not_say_is_not_judged() -> None:
    stated = [write(scene, random.Random(i))[1] for i, scene in enumerate(SCENES)]
    readings = [reading_of(scene) for scene in SCENES]
    table = assess(SCENES, readings, stated)["overall"]
    assert table["size"].total == sum(said.objects[0].size is not None for said in stated)
    assert table["material"].total == sum(said.objects[0].material is not None for said in stated)
    assert table["camera"].total == sum(said.camera is not None for said in stated)
    assert 0 < table["camera"].total < table["motion"].total == len(SCENES)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="need as many readings"):
        assess(SCENES[:2], [])
    with pytest.raises(ValueError, match="1 results for 2 scenes"):
        tabulate([{}], [1, 1])


def test_tables_as_json_and_markdown() -> None:
    results = [dict.fromkeys(ATTRIBUTES, True), dict.fromkeys(ATTRIBUTES, False) | {"count": True}]
    del results[1]["camera"]
    table = tabulate(results, [1, 2])
    values = table_json(table)
    assert values["overall"]["count"]["share"] == 1.0
    assert values["overall"]["shape"]["right"] == 1
    assert values["two objects"]["camera"]["share"] is None
    text = tables_markdown({"here": table, "there": table})
    assert "| shape | 50.0 % (9.5–90.5) | 50.0 % (9.5–90.5) |" in text
    assert "**two objects**" in text
    assert "**three objects**" not in text
