import math

import pytest

from helios.evaluation.ratings import (
    LONG,
    SHORT,
    missing_for,
    rating,
    throughput_rating,
    total,
)


@pytest.mark.parametrize(
    ("name", "score", "expected"),
    [
        ("aesthetic", 0.70, 10),
        ("aesthetic", 0.699, 9),
        ("aesthetic", 0.30, 2),
        ("aesthetic", 0.29, 1),
        ("amplitude", 3.0, 10),
        ("amplitude", 0.05, 2),
        ("amplitude", 0.0, 1),
        ("smoothness", 0.985, 9),
        ("semantic", 0.25, 5),
        ("naturalness", 0.40, 5),
        ("naturalness", 0.34, 4),
        ("drift aesthetic", 0.0, 10),
        ("drift semantic", 0.015, 9),
        ("drift smoothness", 0.095, 1),
        ("drift naturalness", 0.06, 10),
        ("drift naturalness", 0.22, 2),
        ("drift naturalness", 0.23, 1),
    ],
)
def test_bands(name: str, score: float, expected: int) -> None:
    assert rating(name, score) == expected


@pytest.mark.parametrize("name", LONG)
def test_ratings_never_rise_as_scores_worsen(name: str) -> None:
    scores = [k / 1000 for k in range(1001)]
    ratings = [rating(name, score) for score in scores]
    assert ratings == sorted(ratings, reverse=name.startswith("drift"))
    assert {1, 10} <= set(ratings)


def test_the_published_totals() -> None:
    """Specification "training", 9.1 and 9.2: the short total of the distilled model is 6.00."""
    short = {"aesthetic": 8, "amplitude": 7, "smoothness": 10, "semantic": 5, "naturalness": 5}
    assert total(short, SHORT) == pytest.approx(6.00)
    assert throughput_rating(19.53) == 7
    everything = dict.fromkeys(LONG, 10)
    assert total(everything, LONG) == pytest.approx(9.96)
    assert total(everything, LONG, 19.53) == pytest.approx(9.96 + 0.7)


def test_throughput_stays_between_its_ends() -> None:
    rates = [0.01, 3.2, 3.3, 32, 500]
    assert [throughput_rating(rate) for rate in rates] == [1, 1, 2, 10, 10]


def test_a_part_has_no_total() -> None:
    assert total({"semantic": 5}, SHORT) is None
    assert missing_for({"semantic": 5}, SHORT) == [
        "naturalness",
        "aesthetic",
        "amplitude",
        "smoothness",
    ]


def test_what_has_no_band_is_refused() -> None:
    with pytest.raises(ValueError, match="is not rated"):
        rating("drift amplitude", 0.1)
    with pytest.raises(ValueError, match="no score"):
        rating("semantic", math.nan)
