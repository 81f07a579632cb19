"""Small plots as SVG text: lines with bands, points with intervals, bars. No plotting library.

Colours are CSS variables, so that one drawing serves light and dark pages; drawn to stand alone,
a plot carries its own style and follows the reader's setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["PALETTE", "STYLE", "Band", "Dot", "bar_chart", "dot_chart", "line_chart"]

PALETTE = 8
"""Colours there are; further lines begin again, dashed."""

MOST_AREAS = 4
"""Of more lines than these only the first has its area, since areas hide each other."""

STYLE = """
.plot{--ink:#1d2430;--faint:#6b7280;--grid:#e5e7eb;--paper:#fff;
--s0:#0f6fde;--s1:#d9480f;--s2:#2b8a3e;--s3:#9c36b5;--s4:#c2255c;--s5:#0b7285;--s6:#866118;--s7:#495057}
@media(prefers-color-scheme:dark){.plot{--ink:#e6e9ef;--faint:#9aa4b2;--grid:#2b3240;--paper:#171b23;
--s0:#6cb2ff;--s1:#ff9a6b;--s2:#69db7c;--s3:#da9bf0;--s4:#faa2c1;--s5:#66d9e8;--s6:#e0b656;--s7:#adb5bd}}
.plot text{font:12px system-ui,sans-serif;fill:var(--faint)}
.plot .title{font-weight:600;font-size:13px;fill:var(--ink)}
.plot .name{fill:var(--ink)}
.plot .grid{stroke:var(--grid);stroke-width:1}
.plot .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.plot .band{opacity:.16;stroke:none}
.plot .whisker{stroke-width:2;stroke-linecap:round}
"""
"""Once per page, or inside a plot that stands alone."""

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 34


@dataclass(frozen=True)
class Band:
    """One line of a plot.

    Attributes:
        name: for the legend.
        x: where the values stand.
        mean: the line; nan leaves a gap.
        low, high: the band around it; nan: none.
    """

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Dot:
    """One point with its interval in a row; nan: nothing is drawn."""

    value: float
    low: float = math.nan
    high: float = math.nan


def line_chart(
    title: str,
    bands: Sequence[Band],
    *,
    x_label: str = "",
    width: int = 420,
    height: int = 240,
    legend: bool = False,
    alone: bool = False,
    most: float | None = None,
) -> str:
    """Lines over a common axis, as one ``<svg>``.

    Args:
        title: above the plot; also what a screen reader says.
        bands: the lines, first colour first.
        x_label: below the axis.
        width: pixels at natural size.
        height: likewise, without the legend.
        legend: names of the lines below the plot.
        alone: whether the style goes inside, for a file of its own.
        most: the largest value there can be; the axis does not go beyond it.
    """
    xs = [value for band in bands for value in band.x]
    ys = [
        value
        for band in bands
        for row in (band.mean, band.low, band.high)
        for value in row
        if math.isfinite(value)
    ]
    low, high = _span(ys)
    if most is not None and ys and max(ys) <= most:
        high = min(high, most)
    left, right = (min(xs), max(xs)) if xs else (0.0, 1.0)
    right = right if right > left else left + 1
    across, down = width - LEFT - RIGHT, height - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + across * (x - left) / (right - left),
            TOP + down * (high - y) / (high - low),
        )

    body = [_text(LEFT - 40, 18, title, "title")]
    for tick in _ticks(low, high):
        y = place(left, tick)[1]
        body.append(_line(LEFT, y, width - RIGHT, y))
        body.append(_text(LEFT - 6, y + 4, _number(tick), anchor="end"))
    for tick in _ticks(left, right, 5):
        body.append(_text(place(tick, low)[0], height - 16, _number(tick), anchor="middle"))
    if x_label:
        body.append(_text(width - RIGHT, height - 3, x_label, anchor="end"))
    for number, band in enumerate(bands):
        if number == 0 or len(bands) <= MOST_AREAS:
            body += _area(band, place, number)
        body += _path(band, place, number)
    rows = 0
    if legend:
        rows, names = _legend([band.name for band in bands], width, height)
        body += names
    return _svg(title, body, width, height + 18 * rows, alone=alone)


def dot_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[Dot]]],
    names: Sequence[str],
    *,
    width: int = 640,
    legend: bool = True,
    alone: bool = False,
    zero: bool = False,
) -> str:
    """Points with intervals, one row per label and one colour per name.

    Args:
        title: above the plot.
        rows: label, and one point per name.
        names: of the colours.
        width: pixels at natural size.
        legend: names of the colours below the plot.
        alone: whether the style goes inside.
        zero: whether the axis must show 0, for differences.
    """
    shown = [v for _, dots in rows for dot in dots for v in (dot.value, dot.low, dot.high)]
    low, high = _span([value for value in shown if math.isfinite(value)] + [0.0] * zero)
    left = 24 + 7 * max((len(label) for label, _ in rows), default=0)
    pitch = 10
    tall = pitch * max(1, len(names)) + 10
    height = TOP + tall * len(rows) + BOTTOM
    across = width - left - RIGHT - 8

    def at(value: float) -> float:
        return left + across * (value - low) / (high - low)

    body = [_text(12, 18, title, "title")]
    for tick in _ticks(low, high, 6):
        body.append(_line(at(tick), TOP, at(tick), height - BOTTOM + 4))
        body.append(_text(at(tick), height - 14, _number(tick), anchor="middle"))
    for row, (label, dots) in enumerate(rows):
        top = TOP + tall * row
        body.append(_text(left - 10, top + tall / 2 + 4, label, "name", anchor="end"))
        for number, dot in enumerate(dots):
            if not math.isfinite(dot.value):
                continue
            y = top + 5 + pitch * (number + 0.5)
            colour = _colour(number)
            if math.isfinite(dot.low) and math.isfinite(dot.high):
                body.append(
                    f'<line class="whisker" x1="{at(dot.low):.1f}" x2="{at(dot.high):.1f}" '
                    f'y1="{y:.1f}" y2="{y:.1f}" style="stroke:{colour}"/>'
                )
            body.append(
                f'<circle cx="{at(dot.value):.1f}" cy="{y:.1f}" r="3.6" style="fill:{colour}"/>'
            )
    extra = 0
    if legend:
        extra, keys = _legend(names, width, height)
        body += keys
    return _svg(title, body, width, height + 18 * extra, alone=alone)


def bar_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    *,
    x_label: str = "",
    width: int = 720,
    alone: bool = False,
) -> str:
    """One bar per row, made of parts that follow each other, as one ``<svg>``.

    Args:
        title: above the plot.
        rows: name and the lengths of its parts, none below 0.
        names: of the parts, for the legend.
        x_label: below the axis.
        width: pixels at natural size.
        alone: whether the style goes inside, for a file of its own.
    """
    side, tall = 16 + round(7.2 * max((len(name) for name, _ in rows), default=0)), 26
    height = TOP + tall * len(rows) + BOTTOM
    most = max((sum(parts) for _, parts in rows), default=0.0) or 1.0
    scale = (width - side - RIGHT) / most
    body = [_text(12, 18, title, "title")]
    for tick in _ticks(0.0, most, 6):
        x = side + scale * tick
        body.append(_line(x, TOP, x, height - BOTTOM))
        body.append(_text(x, height - 16, _number(tick), anchor="middle"))
    if x_label:
        body.append(_text(width - RIGHT, height - 3, x_label, anchor="end"))
    for line, (name, parts) in enumerate(rows):
        top, x = TOP + tall * line + 4, float(side)
        body.append(_text(side - 8, top + 13, name, "name", "end"))
        for number, part in enumerate(parts):
            body.append(
                f'<rect x="{x:.1f}" y="{top}" width="{scale * part:.1f}" height="{tall - 8}" '
                f'style="fill:{_colour(number)}"/>'
            )
            x += scale * part
    extra, keys = _legend(names, width, height)
    return _svg(title, body + keys, width, height + 18 * extra, alone=alone)


def _svg(title: str, body: Sequence[str], width: int, height: int, *, alone: bool) -> str:
    style = f"<style>{STYLE}</style>" if alone else ""
    paper = '<rect width="100%" height="100%" style="fill:var(--paper)"/>' if alone else ""
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{style}{paper}{''.join(body)}</svg>"
    )


def _colour(number: int) -> str:
    return f"var(--s{number % PALETTE})"


def _stroke(number: int) -> str:
    dashes = "" if number < PALETTE else ";stroke-dasharray:5 4"
    return f"stroke:{_colour(number)}{dashes}"


def _area(
    band: Band, place: Callable[[float, float], tuple[float, float]], number: int
) -> list[str]:
    parts, colour = [], _colour(number)
    for piece in _pieces(band.low, band.high):
        upper = [place(band.x[i], band.high[i]) for i in piece]
        lower = [place(band.x[i], band.low[i]) for i in reversed(piece)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in upper + lower)
        parts.append(f'<polygon class="band" points="{points}" style="fill:{colour}"/>')
    return parts


def _path(
    band: Band, place: Callable[[float, float], tuple[float, float]], number: int
) -> list[str]:
    parts = []
    for piece in _pieces(band.mean):
        points = [place(band.x[i], band.mean[i]) for i in piece]
        if len(points) == 1:
            x, y = points[0]
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:{_colour(number)}"/>'
            )
            continue
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line" points="{line}" style="{_stroke(number)}"/>')
    return parts


def _pieces(*rows: Sequence[float]) -> list[list[int]]:
    """Runs of indices at which every row has a number."""
    runs: list[list[int]] = [[]]
    for index in range(len(rows[0])):
        if all(math.isfinite(row[index]) for row in rows):
            runs[-1].append(index)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _legend(names: Sequence[str], width: int, height: int) -> tuple[int, list[str]]:
    """How many lines the names take, and the names."""
    parts, x, row = [], 14.0, 0
    for number, name in enumerate(names):
        space = 26 + 6.8 * len(name)
        if x > 14 and x + space > width:
            x, row = 14.0, row + 1
        y = height + 12 + 18 * row
        parts.append(
            f'<line class="line" x1="{x:.0f}" x2="{x + 14:.0f}" y1="{y - 4}" y2="{y - 4}" '
            f'style="{_stroke(number)}"/>'
        )
        parts.append(_text(x + 19, y, name, "name"))
        x += space + 10
    return row + 1, parts


def _span(values: Sequence[float]) -> tuple[float, float]:
    """An axis that holds all values with some air; never empty."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-3)
    floor = 0.0 if low >= 0 and low - air < 0 else low - air
    return floor, high + air


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * part for part in (1, 2, 2.5, 5, 10) if power * part >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    text = f"{value:.4g}"
    return "0" if text in ("-0", "0") else text.replace("-", "\N{MINUS SIGN}")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{mark}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
