"""Right or wrong, attribute by attribute: what a judge read against what the scene holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from helios.evaluation.reading import stated_verdicts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from helios.data.scenes import Description, Scene
    from helios.evaluation.reading import Reading

__all__ = [
    "ATTRIBUTES",
    "GROUPS",
    "Rate",
    "Table",
    "assess",
    "table_json",
    "tables_markdown",
    "tabulate",
    "wilson_interval",
]

ATTRIBUTES = (
    "colour set",
    "main colour",
    "shape",
    "every shape",
    "motion",
    "setting",
    "size",
    "material",
    "count",
    "camera",
    "all four",
)
"""Rows of the table. "all four": main colour, shape, motion and setting together."""

GROUPS = ("overall", "one object", "two objects", "three objects")


def wilson_interval(right: float, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Interval of a share by Wilson's score, 95 % by default; ``(0, 1)`` without observations.

    ``(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` with ``p = right/total``. It stays
    inside 0 to 1 and is honest near both ends, where the normal interval is not.
    """
    if not 0 <= right <= total:
        raise ValueError(f"right must lie between 0 and {total}, got {right}")
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    half /= 1 + square / total
    # At both ends the closed form is exactly 0 or 1; rounding must not leave the interval.
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == total else centre + half
    return low, high


@dataclass(frozen=True)
class Rate:
    """How many of how many were right."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """The share that was right; nan without observations."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson)."""
        return wilson_interval(self.right, self.total)

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values for a report; the share is ``None`` without observations."""
        low, high = self.interval
        share = round(self.share, 4) if self.total else None
        return {
            "right": self.right,
            "total": self.total,
            "share": share,
            "low": round(low, 4),
            "high": round(high, 4),
        }


Table: TypeAlias = "dict[str, dict[str, Rate]]"
"""Group of scenes, then attribute."""


def assess(
    scenes: Sequence[Scene],
    readings: Sequence[Reading],
    stated: Sequence[Description] | None = None,
) -> Table:
    """The table of what a judge read in videos of ``scenes``.

    Args:
        scenes: the truth.
        readings: one per scene.
        stated: what each caption says; size, material and camera count only where they are said.
            Without it they always count: the videos are then renders of the scenes themselves.
    """
    if len(readings) != len(scenes) or (stated is not None and len(stated) != len(scenes)):
        raise ValueError(f"{len(scenes)} scenes need as many readings, got {len(readings)}")
    said = [None] * len(scenes) if stated is None else stated
    results = [
        stated_verdicts(scene, reading, words)
        for scene, reading, words in zip(scenes, readings, said, strict=True)
    ]
    return tabulate(results, [len(scene.objects) for scene in scenes])


def tabulate(results: Sequence[Mapping[str, bool]], counts: Sequence[int]) -> Table:
    """Rates per group of scenes and attribute.

    Args:
        results: per video, right or wrong of every attribute that can be asked of it; an
            attribute that the caption does not state is left out and not counted.
        counts: per video, the number of objects of its scene.

    Returns:
        ``{"overall": {"shape": Rate, ...}, "one object": ..., "two objects": ...}`` without the
        groups that have no video.
    """
    if len(results) != len(counts):
        raise ValueError(f"{len(results)} results for {len(counts)} scenes")
    members = {"overall": list(range(len(counts)))}
    for number, name in enumerate(GROUPS[1:], start=1):
        members[name] = [index for index, count in enumerate(counts) if count == number]
    return {
        name: {attribute: _rate(results, chosen, attribute) for attribute in ATTRIBUTES}
        for name, chosen in members.items()
        if chosen
    }


def _rate(results: Sequence[Mapping[str, bool]], chosen: Iterable[int], attribute: str) -> Rate:
    asked = [results[index][attribute] for index in chosen if attribute in results[index]]
    return Rate(sum(asked), len(asked))


def table_json(table: Table) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """The table as plain values."""
    return {
        group: {attribute: rate.to_json() for attribute, rate in rates.items()}
        for group, rates in table.items()
    }


def tables_markdown(tables: Mapping[str, Table], groups: Iterable[str] = GROUPS) -> str:
    """Markdown: per group one table with a row per attribute and a column per source."""
    parts = []
    for group in groups:
        columns = {name: table[group] for name, table in tables.items() if group in table}
        if not columns:
            continue
        total = max(rates["count"].total for rates in columns.values())
        lines = [f"**{group}** (up to {total} videos)", ""]
        lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for attribute in ATTRIBUTES:
            cells = " | ".join(_cell(rates[attribute]) for rates in columns.values())
            lines.append(f"| {attribute} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(rate: Rate) -> str:
    if not rate.total:
        return "–"
    low, high = rate.interval
    return f"{100 * rate.share:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
