"""The report of an evaluation: metrics.json, table.md and a self-contained report.html.

The same evaluation gives the same bytes: no dates, no random names.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from wsi_stain.errors import OutputError
from wsi_stain.evaluate.evaluate import METRICS, Result
from wsi_stain.evaluate.examples import SHOWN_SHARE, Example, examples
from wsi_stain.evaluate.figures import Ruler
from wsi_stain.evaluate.tables import plain, table, texts
from wsi_stain.files import record
from wsi_stain.measure.metrics import Estimate

METRICS_JSON, TABLE_MD, REPORT_HTML = "metrics.json", "table.md", "report.html"
WARNING = "Virtual stain. RESEARCH USE ONLY."
SET_METRICS = {
    "FID": "Fréchet Inception distance of the generated set to the real one (torchmetrics; no interval, since "
    "resampling biases it; much too high where there are fewer images than its 2048 features)",
    "KID": "kernel Inception distance of the two sets (torchmetrics; unbiased; no interval)",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """The evaluated data and settings."""

    source: str
    """The pairs, as the user named them."""
    split: str
    stain: str
    unit: str
    """Unit of the bootstrap, in words."""
    ruler: Ruler
    version: str
    """Version of wsi-stain."""


def refuse_used(folder: Path) -> None:
    """Raise OutputError if the folder already holds a report; reports are never overwritten."""
    if (folder / METRICS_JSON).exists():
        raise OutputError(
            f"{folder} already holds a report ({METRICS_JSON}): choose another folder, or remove it first"
        )


def write(folder: Path, result: Result, facts: Facts) -> None:
    """Write the three files; metrics.json last, as the mark of a complete report.

    Raises:
        OutputError: the folder already holds a report.
    """
    refuse_used(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE_MD).write_text(table(result.rows) + "\n", encoding="utf-8")
    (folder / REPORT_HTML).write_text(html(result, facts, examples(result)), encoding="utf-8")
    record.write(folder / METRICS_JSON, content(result, facts))


def content(result: Result, facts: Facts) -> dict[str, Any]:
    """Content of metrics.json: the rows, and the data that they were measured on."""
    judged = judged_rows(result)
    return {
        "wsi_stain": facts.version,
        "model": judged[0] if judged else None,
        "subjects": {c.name: {"kind": c.kind, **c.about} for c in result.contenders},
        "source": facts.source,
        "split": facts.split,
        "pairs": len(result.fields),
        "groups": len({field.group for field in result.fields}),
        "unit": facts.unit,
        "stain": facts.stain,
        "mpp": facts.ruler.mpp,
        "glass": list(facts.ruler.glass),
        **plain(result),
    }


def judged_rows(result: Result) -> list[str]:
    """All rows but the baselines."""
    return [c.name for c in result.contenders if c.kind != "baseline"]


def html(result: Result, facts: Facts, pictures: Sequence[Example]) -> str:
    """The whole report as one HTML page without scripts or links to other files."""
    parts = [
        _head(facts),
        _facts(result, facts),
        _tables(result, facts),
        _plots(result),
        _pictures(pictures),
        _meanings(result),
    ]
    title = escape(f"{facts.stain} from H&E: evaluation")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n<body><main>'
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _head(facts: Facts) -> str:
    return (
        f"<h1>{escape(facts.stain)} from H&amp;E: evaluation</h1>"
        f'<p class="warning"><strong>{WARNING}</strong> The evaluated images are predictions '
        "from H&amp;E, not physical stains.</p>"
    )


def _facts(result: Result, facts: Facts) -> str:
    units = len({field.group for field in result.fields})
    glass = ", ".join(map(str, facts.ruler.glass))
    lines = [
        (c.name, "; ".join([c.kind, *(f"{key} {value}" for key, value in c.about.items() if value)]))
        for c in result.contenders
        if c.kind != "baseline"
    ]
    lines += [
        ("pairs", f"{facts.source}, split {facts.split}: {len(result.fields)} fields"),
        ("unit of the bootstrap", f"{facts.unit}; {units} of them"),
        ("measured at", f"{facts.ruler.mpp:g} µm/px, stain background ({glass})"),
        ("created by", f"wsi-stain {facts.version}"),
    ]
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in lines)
    return f'<table class="facts">{rows}</table>'


def _tables(result: Result, facts: Facts) -> str:
    names = list(next(iter(result.rows.values())))
    stain = [name for name in names if name.startswith(("DAB", "H r", "streaks", "outline"))]
    rest = [name for name in names if name not in stain]
    one = len({field.group for field in result.fields}) < 2
    intervals = "No intervals: all fields belong to one unit." if one else "In grey: 95 % intervals by bootstrap."
    slides = (
        ""
        if facts.unit == "slide"
        else " As far as is known, all fields come from one slide; the results do not cover other slides."
    )
    return (
        f"<h2>Stain</h2><p>Amount and location of DAB. {intervals}{slides}</p>{_table(result, stain)}"
        "<h2>Pixels</h2><p>For comparison with the literature: on serial sections these barely discriminate, as the "
        f"rows of the blurred and of the shifted real stain show.</p>{_table(result, rest)}"
    )


def _table(result: Result, metrics: Sequence[str]) -> str:
    kinds = {c.name: c.kind for c in result.contenders}
    head = "".join(f"<th>{escape(name)}</th>" for name in metrics)
    body = "".join(
        f'<tr class="{kinds[name]}"><th>{escape(name)}</th>{"".join(_cell(m, row[m]) for m in metrics)}</tr>'
        for name, row in result.rows.items()
    )
    return f'<div class="wide"><table class="figures"><tr><th></th>{head}</tr>{body}</table></div>'


def _cell(metric: str, estimate: Estimate) -> str:
    value, *interval = texts(metric, estimate)
    return f"<td>{value}{''.join(f'<small>{text}</small>' for text in interval)}</td>"


def _plots(result: Result) -> str:
    from wsi_stain.evaluate import plots

    rows = judged_rows(result)
    if not rows:
        return ""
    colours = plots.colours(rows)
    drawings = "".join(
        f"<h3>{escape(row)}</h3>{_image(plots.agreement(result, row, colours[row]), 'png', f'agreement of {row}')}"
        for row in rows
    )
    return (
        "<h2>DAB-positive area, generated and real</h2><p>Left of each pair: the dashed line is equality. Right: "
        "differences against means, with bias and limits of agreement (± 1.96 standard deviations), in percentage "
        f"points.</p>{drawings}<h2>DAB density</h2>{_image(plots.histograms(result, rows), 'png', 'histograms of DAB')}"
    )


def _pictures(pictures: Sequence[Example]) -> str:
    if not pictures:
        return ""
    rows = []
    for example in pictures:
        cells = "".join(
            f"<figure>{_image(picture, 'jpeg', f'{caption}, {example.name}')}"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for caption, picture in example.pictures.items()
        )
        rows.append(
            f"<h3>{example.why}: {escape(example.name)}, error {100 * example.error:.1f} percentage points</h3>"
            f'<div class="pictures">{cells}</div>'
        )
    first = escape(list(pictures[0].pictures)[1])
    return (
        f"<h2>Pictures</h2><p>Fields by the error of the DAB-positive share of {first} in blocks of 128 µm; "
        f"fields under {100 * SHOWN_SHARE:.0f} % positive, real and generated, are skipped if there are enough "
        f"others. The generated pictures are virtual stains, for research use only.</p>{''.join(rows)}"
    )


def _meanings(result: Result) -> str:
    meanings = {m.name: m.meaning for m in METRICS} | SET_METRICS
    names = next(iter(result.rows.values()))
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meanings[name])}</dd>" for name in names)
    return f"<h2>Definitions of the figures</h2><dl>{items}</dl>"


def _image(content: bytes, kind: str, what: str) -> str:
    return f'<img alt="{escape(what)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


CSS = """
body { margin: 0; background: #fff; color: #222; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; margin: 0 0 10px; } h2 { font-size: 19px; margin: 38px 0 8px; }
h3 { font-size: 14px; margin: 20px 0 6px; font-weight: 600; }
p { max-width: 78ch; margin: 6px 0 12px; }
.warning { background: #fdf3e4; border-left: 4px solid #c77d1e; padding: 8px 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.facts th { text-align: left; font-weight: 500; color: #666; padding: 2px 18px 2px 0; vertical-align: top;
  white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.figures { font-size: 13px; } .figures tr:first-child th { vertical-align: bottom; border-bottom: 2px solid #333; }
.figures th, .figures td { padding: 5px 9px; border-bottom: 1px solid #e3e3e3; text-align: right; }
.figures th { font-weight: 600; } .figures th:first-child { text-align: left; min-width: 150px; }
.figures .baseline th, .figures .baseline td { font-weight: 400; color: #666; }
.figures small { display: block; color: #999; font-size: 11px; white-space: nowrap; }
img { max-width: 100%; height: auto; display: block; }
.pictures { display: flex; gap: 8px; } figure { margin: 0; flex: 1 1 0; max-width: 384px; } figure img { width: 100%; }
figcaption { font-size: 12px; color: #666; }
dt { font-weight: 600; } dd { margin: 0 0 8px; max-width: 90ch; color: #444; }
"""
