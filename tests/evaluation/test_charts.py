import math
import xml.etree.ElementTree as ET

import pytest

from helios.evaluation.pages.charts import Band, Dot, bar_chart, dot_chart, line_chart

SPACE = "{http://www.w3.org/2000/svg}"


def points(element: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in element.get("points", "").split()]


def band(name: str, mean: list[float], spread: float = 1.0) -> Band:
    x = [float(k) for k in range(len(mean))]
    return Band(name, x, mean, [v - spread for v in mean], [v + spread for v in mean])


def test_a_line_goes_where_the_numbers_go() -> None:
    root = ET.fromstring(line_chart("A < B", [band("one", [0.0, 10.0, 5.0])]))
    assert root.get("aria-label") == "A < B"
    (line,) = root.iter(f"{SPACE}polyline")
    (x0, y0), (x1, y1), (x2, y2) = points(line)
    assert x0 < x1 < x2
    assert y1 < y2 < y0  # up is less in SVG
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.2)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.2)
    (area,) = root.iter(f"{SPACE}polygon")
    assert len(points(area)) == 6


def test_gaps_stay_gaps() -> None:
    root = ET.fromstring(line_chart("gap", [band("one", [1.0, 2.0, math.nan, 3.0, 4.0])]))
    lines = [points(line) for line in root.iter(f"{SPACE}polyline")]
    assert [len(line) for line in lines] == [2, 2]
    alone = ET.fromstring(line_chart("dot", [band("one", [math.nan, 2.0])]))
    assert len(list(alone.iter(f"{SPACE}circle"))) == 1


@pytest.mark.parametrize("values", [[], [math.nan], [5.0], [0.0, 0.0], [1e-9, 2e-9], [-4e6, 3e6]])
def test_any_numbers_make_a_picture(values: list[float]) -> None:
    root = ET.fromstring(line_chart("any", [band("one", values, 0.0)], legend=True, alone=True))
    for element in root.iter(f"{SPACE}polyline"):
        assert all(0 <= x <= 420 and 0 <= y <= 240 for x, y in points(element))


def test_everything_stays_inside_the_picture() -> None:
    bands = [band(f"line {k}", [k * 3.0 + j for j in range(20)]) for k in range(9)]
    root = ET.fromstring(line_chart("many", bands, legend=True))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for text in root.iter(f"{SPACE}text"):
        assert 0 <= float(text.get("x", -1)) <= width
        assert 0 <= float(text.get("y", -1)) <= height
    names = [t.text for t in root.iter(f"{SPACE}text") if t.get("class") == "name"]
    assert names == [f"line {k}" for k in range(9)]


def test_many_lines_can_be_told_apart() -> None:
    few, many = (
        ET.fromstring(line_chart("lines", [band(f"{k}", [1.0, 2.0]) for k in range(count)]))
        for count in (4, 9)
    )
    assert len(list(few.iter(f"{SPACE}polygon"))) == 4
    assert len(list(many.iter(f"{SPACE}polygon"))) == 1
    styles = [line.get("style") for line in many.iter(f"{SPACE}polyline")]
    assert len(set(styles)) == 9


def test_points_and_their_intervals() -> None:
    rows = [("shape", [Dot(50, 40, 60), Dot(90, 85, 95)]), ("motion", [Dot(math.nan), Dot(70)])]
    root = ET.fromstring(dot_chart("right, %", rows, ["a", "b"], legend=False))
    dots = [float(circle.get("cx", 0)) for circle in root.iter(f"{SPACE}circle")]
    assert len(dots) == 3
    assert dots[0] < dots[2] < dots[1]
    whiskers = [e for e in root.iter(f"{SPACE}line") if e.get("class") == "whisker"]
    assert len(whiskers) == 2
    first = whiskers[0]
    middle = (float(first.get("x1", 0)) + float(first.get("x2", 0))) / 2
    assert middle == pytest.approx(dots[0], abs=0.2)


def test_a_plot_alone_brings_its_style() -> None:
    assert "prefers-color-scheme" in line_chart("x", [band("a", [1.0, 2.0])], alone=True)
    assert "<style>" not in line_chart("x", [band("a", [1.0, 2.0])])


def test_parts_of_a_bar_follow_each_other_to_scale() -> None:
    rows = [("long", [30.0, 10.0]), ("short", [0.0, 10.0])]
    root = ET.fromstring(bar_chart("bars", rows, ["one", "two"], width=400))
    bars = [(float(r.get("x", "")), float(r.get("width", ""))) for r in root.iter(f"{SPACE}rect")]
    (x0, w0), (x1, w1), (x2, w2), (x3, w3) = bars
    assert x1 == pytest.approx(x0 + w0, abs=0.2)
    assert w0 == pytest.approx(3 * w1, abs=0.3)
    assert x0 == x2 == x3
    assert (w2, w3) == (0, w1)
    assert x1 + w1 <= 400
