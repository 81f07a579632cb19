"""A report's tables, made once and written as Markdown or HTML.

An evaluation is plain values (see ``suites``); everything here only chooses and words them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helios.evaluation.accuracy import ATTRIBUTES
from helios.evaluation.pages.catalogue import figure
from helios.geometry import FPS

__all__ = ["KEY_FIGURES", "Table", "cell", "markdown", "tables"]

KEY_FIGURES = (
    "caption",
    "aesthetic",
    "semantic",
    "naturalness",
    "delta_e",
    "saturation",
    "lightness",
    "sharpness",
    "blur",
    "noise",
    "amplitude",
    "smoothness",
    "flicker",
    "snap_back",
    "snap_rate",
)
"""Rows of the tables, in this order; attributes of captions have a table of their own."""

_SETS = ("feature_distance", "kernel_distance", "diversity")


@dataclass(frozen=True)
class Table:
    """Rows of text under a title.

    Attributes:
        title: a heading.
        header: names of the columns; the first is that of the rows.
        rows: as many cells each.
        note: a sentence below.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def cell(name: str, estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """A figure and its interval as people write them."""
    if estimate is None or estimate.get("value") is None:
        return "–"
    kind = figure(name)
    sign = "+" if signed and estimate["value"] > 0 else ""
    text = sign + kind.text(estimate["value"])
    if estimate.get("low") is None:
        return text
    low, high = (kind.text(estimate[end]) for end in ("low", "high"))
    between = " to " if low.startswith("-") or high.startswith("-") else "–"
    return f"{text} ({low}{between}{high})"


def tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """Every table of an evaluation that has something to say."""
    arms = {name: evaluation["arms"][name] for name in evaluation["order"]}
    lengths = evaluation["lengths"]
    result: list[Table] = []
    for length in lengths:
        result += _of_length(arms, length)
    result += [_minutes(arms), *(_pair(pair) for pair in evaluation["pairs"])]
    result += [_grades(evaluation["grades"]), _work(arms), _stream(arms)]
    return [table for table in result if table.rows]


def _of_length(arms: Mapping[str, Any], length: int) -> list[Table]:
    def entry(arm: str, name: str, part: str) -> Any:
        return arms[arm]["lengths"][str(length)].get(name, {}).get(part)

    def rows(names: Iterable[str], part: str, *, signed: bool = False) -> list[list[str]]:
        found = [
            [
                figure(name).title,
                *(cell(name, entry(arm, name, part), signed=signed) for arm in arms),
            ]
            for name in names
        ]
        return [row for row in found if any(text != "–" for text in row[1:])]

    seconds = f"{length} frames ({length / FPS:.1f} s)"
    sets = [
        [figure(name).title, *(cell(name, arms[a]["sets"][str(length)].get(name)) for a in arms)]
        for name in _SETS
    ]
    whole = rows(KEY_FIGURES, "value") + [r for r in sets if any(text != "–" for text in r[1:])]
    header = ["", *arms]
    counts = ", ".join(f"{name}: {arm['videos']}" for name, arm in arms.items())
    result = [
        Table(f"{seconds}: the whole video", header, whole, f"Videos: {counts}."),
        Table(
            f"{seconds}: last 15 % less first 15 %",
            header,
            rows(KEY_FIGURES, "change", signed=True),
            "Signed; an interval that holds 0 shows no drift.",
        ),
        Table(f"{seconds}: what captions say, in all chunks", header, rows(ATTRIBUTES, "value")),
    ]
    trainings = [
        [
            f"{figure(name).title}: {name_of}",
            *(_of_trainings(name, entry(arm, name, f"{name_of} of trainings")) for arm in arms),
        ]
        for name_of in ("value", "change")
        for name in KEY_FIGURES
    ]
    trainings = [row for row in trainings if any(text != "–" for text in row[1:])]
    result.append(Table(f"{seconds}: each training by itself", header, trainings))
    return result


def _of_trainings(name: str, values: Sequence[float | None] | None) -> str:
    return "–" if values is None else ", ".join(figure(name).text(value) for value in values)


def _minutes(arms: Mapping[str, Any]) -> Table:
    header = ["", "", *KEY_FIGURES]
    rows = []
    for name, arm in arms.items():
        for minute, entries in arm["minutes"].items():
            values = [cell(key, entries.get(key)) for key in KEY_FIGURES]
            rows.append([name, f"minute {minute}", *values])
    shown = [k for k in range(len(header)) if k < 2 or any(row[k] != "–" for row in rows)]
    titles = [header[k] if k < 2 else figure(header[k]).title for k in shown]
    return Table(
        "Minute by minute",
        titles,
        [[row[k] for k in shown] for row in rows],
        "Means over the minute that ends there.",
    )


def _pair(pair: Mapping[str, Any]) -> Table:
    rows = []
    for name in (*KEY_FIGURES, *ATTRIBUTES):
        parts = pair["figures"].get(name)
        if parts is None:
            continue
        row = [cell(name, parts.get(part), signed=True) for part in ("value", "last", "change")]
        if any(text != "–" for text in row):
            rows.append([figure(name).title, *row])
    ratio = pair.get("feature_distance_ratio")
    note = "On the same prompts and seeds; intervals are of the difference itself."
    if ratio is not None:
        note += f" Feature distance: {cell('ratio', ratio)} times that of {pair['theirs']}."
    return Table(
        f"{pair['ours']} less {pair['theirs']}, {pair['length']} frames",
        ["", "whole video", "last 15 %", "change from first to last"],
        rows,
        note,
    )


def _grades(grades: Mapping[str, Mapping[str, Any]]) -> Table:
    names = ("aesthetic", "amplitude", "smoothness", "semantic", "naturalness")
    drifts = tuple(f"drift {name}" for name in names if name != "amplitude")
    rows = []
    for arm, by_length in grades.items():
        for length, grade in by_length.items():
            ratings = [str(grade["ratings"].get(name, "–")) for name in (*names, *drifts)]
            totals = [grade["throughput"], grade["total"], grade["total with throughput"]]
            written = ["–" if value is None else f"{value:g}" for value in totals]
            rows.append([arm, str(length), *ratings, *written])
    header = ["", "frames", *names, *drifts, "throughput", "total", "with throughput"]
    missing = sorted({name for by in grades.values() for g in by.values() for name in g["missing"]})
    note = "Ratings 1 to 10 by the benchmark's bands."
    if missing:
        note += f" No total without: {', '.join(missing)}."
    return Table("HeliosBench", header, rows, note)


def _work(arms: Mapping[str, Any]) -> Table:
    rows = []
    for name, arm in arms.items():
        work, speed = arm["work"], arm["speed"]
        if work is None and speed is None:
            continue
        row = [name]
        row.append("–" if work is None else figure("passes").text(work["passes"]))
        row.append("–" if work is None else figure("token_steps").text(work["token_steps"]))
        if speed is None:
            row += ["–"] * 4
        else:
            row += [f"{speed['fps']:.2f}", f"{speed['first_frame']:.2f}", f"{speed['chunk']:.3f}"]
            row.append(f"{speed['memory'] / 2**20:.0f}")
        rows.append(row)
    header = [
        "",
        figure("passes").title,
        figure("token_steps").title,
        "frames per second",
        "first chunk, s",
        "later chunks, s",
        "memory, MiB",
    ]
    return Table("Work and speed", header, rows)


def _stream(arms: Mapping[str, Any]) -> Table:
    """Time and memory early and late in a long video: neither may grow."""
    rows = []
    for name, arm in arms.items():
        seconds, memory = arm["stream"]["seconds"], arm["stream"]["memory"]
        count = len(seconds) // 5
        if not count or arm["work"] is None:
            continue
        # The first fifth holds the first chunk, which warms everything up.
        early, late = seconds[count : 2 * count], seconds[-count:]
        rows.append(
            [
                name,
                f"{sorted(early)[count // 2]:.4f}",
                f"{sorted(late)[count // 2]:.4f}",
                f"{memory[count] / 2**20:.0f}",
                f"{memory[-1] / 2**20:.0f}",
            ]
        )
    header = ["", "s per chunk, second fifth", "s per chunk, last fifth"]
    header += ["memory after a fifth, MiB", "memory at the end, MiB"]
    note = "Of the first batch of videos, made together; a chunk is generated and decoded."
    return Table("Time and memory over the length", header, rows, note)


def markdown(evaluation: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    parts = [f"# {evaluation['title']}", _facts(evaluation)]
    for table in tables(evaluation):
        lines = ["| " + " | ".join(table.header) + " |", "|---" * len(table.header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        parts.append(f"## {table.title}\n\n" + "\n".join(lines))
        if table.note:
            parts.append(table.note)
    if evaluation["missing"]:
        lines = [f"- {figure(name).label}: {line}" for name, line in evaluation["missing"].items()]
        parts.append("## Not measured\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _facts(evaluation: Mapping[str, Any]) -> str:
    environment = evaluation["environment"]
    return (
        f"{evaluation['date']}, {environment['device']}, torch {environment['torch']}, "
        f"helios {evaluation['helios']}. {evaluation['prompts']} prompts, seed "
        f"{evaluation['settings']['seed']}. Intervals are 95 %, over prompts.\n\n"
        f"`{evaluation['command']}`"
    )
