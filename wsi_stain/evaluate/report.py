"""The report of an evaluation: metrics.json, table.md and a self-contained report.html.

The same evaluation gives the same bytes: no dates, no random names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_stain.errors import OutputError
from wsi_stain.evaluate.columns import METRICS
from wsi_stain.evaluate.evaluate import EvaluationResult
from wsi_stain.evaluate.examples import SHOWN_SHARE, Example, examples
from wsi_stain.evaluate.figures import MeasureSettings
from wsi_stain.evaluate.slides import SlidePair, maps
from wsi_stain.evaluate.tables import plain, table, texts
from wsi_stain.files import record
from wsi_stain.files.atomic import atomic_write
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.files.page import embedded, template

METRICS_JSON, TABLE_MD, REPORT_HTML = "metrics.json", "table.md", "report.html"
WARNING = f"Virtual stain. {RESEARCH_USE.upper()}."
SET_METRICS = {
    "FID": "Fréchet Inception distance of the generated set to the real one (torchmetrics; no interval, since "
    "resampling biases it; much too high where there are fewer images than its 2048 features)",
    "KID": "kernel Inception distance of the two sets (torchmetrics; unbiased; no interval)",
}


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """The evaluated data and settings."""

    source: str
    """The pairs, as the user named them."""
    split: str
    stain: str
    unit: str
    """Unit of the bootstrap, in words."""
    ruler: MeasureSettings
    version: str
    """Version of wsi-stain."""
    slides: SlidePair | None = None
    """Two registered slides, if the fields are parts of them: the report then has maps."""


def refuse_used(folder: Path) -> None:
    """Raise OutputError if the folder already holds a report; reports are never overwritten."""
    if (folder / METRICS_JSON).exists():
        raise OutputError(
            f"{folder} already holds a report ({METRICS_JSON}): choose another folder, or remove it first"
        )


def write(folder: Path, result: EvaluationResult, settings: ReportSettings) -> None:
    """Write the three files; metrics.json last, as the mark of a complete report.

    Raises:
        OutputError: the folder already holds a report.
    """
    refuse_used(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / TABLE_MD, table(result.rows) + "\n")
    atomic_write(folder / REPORT_HTML, html(result, settings, examples(result)))
    record.write(folder / METRICS_JSON, content(result, settings))


def content(result: EvaluationResult, settings: ReportSettings) -> dict[str, Any]:
    """Content of metrics.json: the rows, and the data that they were measured on."""
    judged = judged_rows(result)
    return {
        "wsi_stain": settings.version,
        "model": judged[0] if judged else None,
        "subjects": {c.name: {"kind": c.kind, **c.about} for c in result.contenders},
        "source": settings.source,
        "split": settings.split,
        "pairs": len(result.fields),
        "groups": len({field.group for field in result.fields}),
        "unit": settings.unit,
        "stain": settings.stain,
        "mpp": settings.ruler.mpp,
        "background": list(settings.ruler.background),
        **plain(result),
    }


def judged_rows(result: EvaluationResult) -> list[str]:
    """All rows but the baselines."""
    return [c.name for c in result.contenders if c.kind != "baseline"]


def _maps(result: EvaluationResult, settings: ReportSettings, judged: Sequence[str]) -> dict[str, bytes]:
    """A picture of the whole slide for every judged row; empty for fields that are not parts of two slides."""
    from wsi_stain.evaluate import plots

    if settings.slides is None:
        return {}
    rows, columns = (n * settings.slides.block_px * settings.ruler.mpp / 1000 for n in settings.slides.held.shape)
    return {row: plots.maps(*maps(settings.slides, result, row), (rows, columns)) for row in judged}


def html(result: EvaluationResult, settings: ReportSettings, pictures: Sequence[Example]) -> str:
    """The whole report as one HTML page without scripts or links to other files."""
    from wsi_stain.evaluate import plots

    judged = judged_rows(result)
    metrics = list(next(iter(result.rows.values())))
    stain = [name for name in metrics if name.startswith(("DAB", "H r", "streaks", "outline"))]
    colours = plots.colours(judged)
    return template("wsi_stain.evaluate", "report.html.jinja").render(
        warning=WARNING,
        research_use=RESEARCH_USE,
        settings=settings,
        judged=[c for c in result.contenders if c.kind != "baseline"],
        n_fields=len(result.fields),
        n_units=len({field.group for field in result.fields}),
        rows=result.rows,
        parts=result.parts(),
        kinds={c.name: c.kind for c in result.contenders},
        stain_metrics=stain,
        other_metrics=[name for name in metrics if name not in stain],
        texts=texts,
        plots={row: plots.agreement(result, row, colours[row]) for row in judged},
        maps=_maps(result, settings, judged),
        histograms=plots.histograms(result, judged) if judged else b"",
        examples=pictures,
        shown_share=SHOWN_SHARE,
        meanings={m.name: m.meaning for m in METRICS} | SET_METRICS,
        base64=embedded,
    )
