"""The report as one HTML page that needs nothing else: tables, plots and pictures inside it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from helios.evaluation.accuracy import ATTRIBUTES
from helios.evaluation.pages.catalogue import CATALOGUE, figure
from helios.evaluation.pages.charts import PALETTE, STYLE, Band, Dot, dot_chart, line_chart
from helios.evaluation.pages.tables import Table, markdown, tables
from helios.evaluation.suites import Evaluation
from helios.geometry import CHUNK_FRAMES, FPS
from helios.storage import atomic_path

__all__ = ["html", "plots", "write_plots", "write_report"]

CURVES = (
    "caption",
    "shape",
    "motion",
    "delta_e",
    "saturation change",
    "lightness change",
    "sharpness change",
    "noise change",
    "amplitude change",
    "smoothness",
    "away",
    "aesthetic",
)
"""Plots over time, in this order."""

CARDS = ("caption", "delta_e", "flicker", "snap_back", "smoothness", "noise")

MOST_CARDS = 6

DIFFERENCES = (
    ("caption", "change"),
    ("delta_e", "value"),
    ("saturation", "change"),
    ("sharpness", "change"),
    ("flicker", "value"),
)
"""Plots of paired differences: figure, and whether of the whole video or of its drift."""

_PAGE_STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--faint:#5d6675;--edge:#e3e6eb;--paper:#fff;
--page:#f5f6f8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--faint:#9aa4b2;--edge:#2b3240;
--paper:#171b23;--page:#0f1218}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1160px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:17px;margin:40px 0 12px}
p{margin:6px 0}.facts,.note{color:var(--faint);font-size:13.5px}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--paper);
border:1px solid var(--edge);border-radius:6px;padding:2px 6px;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;
margin:24px 0 8px}
.card,.plotbox,.tablebox,.sheet{background:var(--paper);border:1px solid var(--edge);
border-radius:12px}
.card{padding:14px 16px}.card b{display:block;font-size:24px;font-weight:650;
letter-spacing:-.02em}
.card span{color:var(--faint);font-size:13px}.card small{color:var(--faint);font-size:12.5px}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:12px}
.plotbox{padding:12px}.plotbox svg{width:100%;height:auto;display:block}
.wide{max-width:820px}
.tablebox{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:7px 14px;border-top:1px solid var(--edge);white-space:nowrap}
thead th{border-top:0;color:var(--faint);font-weight:600;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
tbody td:first-child{font-weight:500}
td i{font-style:normal;color:var(--faint);font-size:12.5px}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;margin:0 0 12px;font-size:13.5px}
.legend span::before{content:"";display:inline-block;width:16px;
margin-right:7px;vertical-align:middle;border-top:3px var(--line,solid) var(--c)}
.sheet{padding:14px;margin-bottom:12px}
.sheet img{width:100%;border-radius:6px;display:block;margin:4px 0 12px}
.sheet figcaption{font-size:13px;color:var(--faint)}figure{margin:0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;font-size:13.5px}
dt{font-weight:500}dd{margin:0;color:var(--faint)}
@media(max-width:640px){main{padding:20px 14px}dl{grid-template-columns:1fr}
dd{margin-bottom:8px}th,td{padding:6px 10px}}
"""


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        # Line by line, the curves alone would be hundreds of pages.
        ("report.json", json.dumps(evaluation.values, separators=(",", ":"), allow_nan=False)),
        ("report.md", markdown(evaluation.values)),
        ("report.html", html(evaluation)),
    ):
        with atomic_path(folder / name) as draft:
            draft.write_text(text, "utf-8")


def write_plots(values: Mapping[str, Any], folder: Path) -> None:
    """Every plot as ``NAME.svg`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in plots(values).items():
        with atomic_path(folder / f"{name.replace(' ', '-')}.svg") as draft:
            draft.write_text(drawing, "utf-8")


def plots(values: Mapping[str, Any]) -> dict[str, str]:
    """Every plot as an SVG that stands alone, by a name for its file."""
    legend = len(values["order"]) > 1
    found = {
        name: _drawn(name, bands, width=560, height=300, legend=legend, alone=True)
        for name, bands in _bands(values).items()
    }
    dots = _attributes(values, alone=True)
    return found | ({"captions": dots} if dots else {}) | _differences(values, alone=True)


def html(evaluation: Evaluation) -> str:
    """The page."""
    values = evaluation.values
    arms = values["order"]
    parts = [
        f"<h1>{escape(values['title'])}</h1>",
        _facts(values),
        _cards(values),
    ]
    curves = _bands(values)
    if curves and max(len(band.x) for bands in curves.values() for band in bands) > 1:
        drawn = "".join(
            f'<div class="plotbox">{_drawn(name, bands)}</div>' for name, bands in curves.items()
        )
        parts.append(f'<h2>Over time</h2>{_legend(arms)}<div class="plots">{drawn}</div>')
    dots = _attributes(values)
    if dots:
        parts.append(f'<h2>What captions say</h2><div class="plotbox wide">{dots}</div>')
    apart = _differences(values).values()
    if apart:
        drawn = "".join(f'<div class="plotbox">{drawing}</div>' for drawing in apart)
        parts.append(f'<h2>Against {escape(arms[0])}</h2><div class="plots">{drawn}</div>')
    parts += [_table(table) for table in tables(values)]
    parts.append(_sheets(evaluation.strips))
    if values["missing"]:
        lines = "".join(
            f"<dt>{escape(figure(name).label)}</dt><dd>{escape(line)}</dd>"
            for name, line in values["missing"].items()
        )
        parts.append(f"<h2>Not measured</h2><dl>{lines}</dl>")
    parts.append(_meanings(values))
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(values['title'])}</title>"
        f"<style>{_PAGE_STYLE}{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _facts(values: Mapping[str, Any]) -> str:
    environment = values["environment"]
    lengths = ", ".join(f"{length}" for length in values["lengths"])
    facts = (
        f"{values['date']} · {environment['device']} · torch {environment['torch']} · "
        f"helios {values['helios']} · {values['prompts']} prompts · {lengths} frames · "
        f"seed {values['settings']['seed']} · intervals are 95 %, over prompts"
    )
    return f'<p class="facts">{escape(facts)}</p><p><code>{escape(values["command"])}</code></p>'


def _cards(values: Mapping[str, Any]) -> str:
    """The first arm at the longest length in large type, beside the renders if there are any."""
    arms = values["arms"]
    name = values["order"][0]
    length = str(values["lengths"][-1])
    cards = []
    for key in CARDS:
        estimate = arms[name]["lengths"][length].get(key, {}).get("value")
        if estimate is None or estimate["value"] is None:
            continue
        kind = figure(key)
        truth = arms.get("renders", {}).get("lengths", {}).get(length, {}).get(key, {})
        beside = truth.get("value", {}).get("value")
        small = f"renders {kind.text(beside)}" if beside is not None else "&nbsp;"
        cards.append(_card(kind.text(estimate["value"]), kind.title, small))
    speed = arms[name]["speed"]
    if speed:
        del cards[MOST_CARDS - 1 :]
        small = f"{speed['fps'] / FPS:.2f} × the clock"
        cards.append(_card(f"{speed['fps']:.1f}", "frames per second", small))
    heading = f'<p class="note">{escape(name)}, {length} frames</p>'
    return f'<div class="cards">{"".join(cards)}</div>{heading}' if cards else ""


def _card(value: str, label: str, small: str) -> str:
    return (
        f'<div class="card"><b>{value}</b><span>{escape(label)}</span><br>'
        f"<small>{small}</small></div>"
    )


def _bands(values: Mapping[str, Any]) -> dict[str, list[Band]]:
    """Per plot the arms' curves, over seconds of the video."""
    result: dict[str, list[Band]] = {}
    for name in CURVES:
        bands = []
        for arm in values["order"]:
            curve = values["arms"][arm]["curves"].get(name)
            rows = [[], [], []] if curve is None else [_scaled(name, curve[key]) for key in _KEYS]
            span = 0.0 if curve is None else curve["chunks per point"] * CHUNK_FRAMES / FPS
            bands.append(Band(arm, [(k + 0.5) * span for k in range(len(rows[0]))], *rows))
        if any(band.x for band in bands):
            result[name] = bands
    return result


def _drawn(name: str, bands: Sequence[Band], **options: Any) -> str:
    change = name.endswith(" change")
    kind = figure(name.removesuffix(" change"))
    title = f"{kind.title}: change since the first chunk" if change else kind.title
    most = 100.0 if kind.unit == "%" and not change else None
    return line_chart(title, bands, x_label="seconds", most=most, **options)


_KEYS = ("mean", "low", "high")


def _scaled(name: str, row: Sequence[float | None]) -> list[float]:
    factor = figure(name.removesuffix(" change")).factor
    return [math.nan if value is None else value * factor for value in row]


def _dot(name: str, estimate: Mapping[str, float | None] | None) -> Dot:
    """A figure with its interval; nothing is drawn where it was not measured."""
    return Dot(*_scaled(name, [(estimate or {}).get(key) for key in ("value", "low", "high")]))


def _attributes(values: Mapping[str, Any], *, alone: bool = False) -> str:
    """What captions say, attribute by attribute, at the longest length."""
    arms = {name: values["arms"][name] for name in values["order"]}
    length, rows = str(values["lengths"][-1]), []
    for name in ATTRIBUTES:
        entries = (arm["lengths"][length].get(name, {}) for arm in arms.values())
        dots = [_dot(name, entry.get("value")) for entry in entries]
        if any(math.isfinite(dot.value) for dot in dots):
            rows.append((name, dots))
    if not rows:
        return ""
    title = f"Right in all chunks of {length} frames, %"
    return dot_chart(title, rows, list(arms), alone=alone)


def _differences(values: Mapping[str, Any], *, alone: bool = False) -> dict[str, str]:
    """Every other model less the first, paired: a row per model, a colour per length."""
    lengths = values["lengths"]
    models = list(dict.fromkeys(pair["ours"] for pair in values["pairs"]))
    found = {(pair["ours"], pair["length"]): pair["figures"] for pair in values["pairs"]}
    result = {}
    for name, part in DIFFERENCES:
        rows = []
        for model in models:
            entries = (found[model, length].get(name, {}) for length in lengths)
            rows.append((model, [_dot(name, entry.get(part)) for entry in entries]))
        if any(math.isfinite(dot.value) for _, dots in rows for dot in dots):
            what = "change of " if part == "change" else ""
            title = f"{what}{figure(name).title}, less {values['order'][0]}"
            colours = [f"{length} frames" for length in lengths]
            result[f"{name} against"] = dot_chart(title, rows, colours, alone=alone, zero=True)
    return result


def _legend(names: Sequence[str]) -> str:
    # The variables live on the plots, so the legend is one.
    keys = "".join(
        f'<span style="--c:var(--s{number % PALETTE}){";--line:dashed" * (number >= PALETTE)}">'
        f"{escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return f'<div class="legend plot">{keys}</div>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_split(text)}</td>" for text in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2><div class="tablebox"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _split(text: str) -> str:
    """The interval of a figure in a lighter colour."""
    value, opening, rest = text.partition(" (")
    if not opening or not rest.endswith(")"):
        return escape(text)
    return f"{escape(value)} <i>({escape(rest)}</i>"


def _sheets(strips: Mapping[str, Sequence[tuple[str, bytes]]]) -> str:
    """Frames over time, prompt by prompt, one strip per arm."""
    prompts = list(dict.fromkeys(prompt for some in strips.values() for prompt, _ in some))
    figures = []
    for prompt in prompts:
        pictures = []
        for arm, some in strips.items():
            for text, picture in some:
                if text == prompt:
                    data = base64.b64encode(picture).decode()
                    label = escape(f"{arm}: {prompt}", quote=True)
                    pictures.append(
                        f"<figcaption>{escape(arm)}</figcaption>"
                        f'<img alt="{label}" src="data:image/webp;base64,{data}">'
                    )
        figures.append(
            f'<figure class="sheet"><p><b>{escape(prompt)}</b></p>{"".join(pictures)}</figure>'
        )
    if not figures:
        return ""
    return "<h2>Frames, evenly spaced from first to last</h2>" + "".join(figures)


def _meanings(values: Mapping[str, Any]) -> str:
    shown = {
        name
        for arm in values["arms"].values()
        for part in (*arm["lengths"].values(), *arm["sets"].values())
        for name in part
    }
    lines = "".join(
        f"<dt>{escape(kind.title)}</dt><dd>{escape(kind.about)}</dd>"
        for name, kind in CATALOGUE.items()
        if name in shown
    )
    return f"<h2>What the figures mean</h2><dl>{lines}</dl>"
