"""A result as a Markdown table, and as plain values for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from wsi_stain.evaluate.columns import SCALES
from wsi_stain.evaluate.evaluate import EvaluationResult
from wsi_stain.evaluate.figures import Amounts
from wsi_stain.measure.metrics import IntervalEstimate

DIGITS = {"DAB+ error": 3, "DAB+ TNR": 3, "DAB histogram": 3, "SSIM": 3, "FID": 1, "KID": 4}
"""Decimals of a metric, by the beginning of its name; 2 for all others."""


def table(rows: Mapping[str, Mapping[str, IntervalEstimate]]) -> str:
    """The result as a Markdown table: value [low, high]; a dash where a figure is undefined."""
    metrics = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, row in rows.items():
        cells = [" ".join(texts(metric, row[metric])) for metric in metrics]
        lines.append(f"| {name.replace('|', '/')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def texts(metric: str, estimate: IntervalEstimate) -> Iterator[str]:
    """The figure and its interval, if it has one, with the metric's decimals."""
    digits = next((n for start, n in DIGITS.items() if metric.startswith(start)), 2)
    yield "–" if math.isnan(estimate.value) else f"{estimate.value:.{digits}f}"
    if not math.isnan(estimate.low):
        yield f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def plain(result: EvaluationResult) -> dict[str, Any]:
    """Rows, agreement and the figures of every field, ready for JSON; undefined and infinite values are null."""
    content = {
        "rows": {name: {m: dataclasses.asdict(e) for m, e in row.items()} for name, row in result.rows.items()},
        "agreement": {
            name: {scale: dataclasses.asdict(result.agreement(name, scale)) for scale in SCALES} for name in result.rows
        },
        "parts": {
            part: {row: {m: dataclasses.asdict(e) for m, e in values.items()} for row, values in rows.items()}
            for part, rows in result.parts().items()
        },
        "per_field": [_field(result, i) for i in range(len(result.fields))],
    }
    return _finite(content)


def _field(result: EvaluationResult, i: int) -> dict[str, Any]:
    field, rows = result.fields[i], {name: figures[i] for name, figures in result.figures.items()}
    return {
        "name": field.name,
        "group": field.group,
        "real": _amounts(next(iter(rows.values())).real),
        "rows": {
            name: {**_amounts(f.generated), "psnr": f.psnr, "ssim": f.ssim, "hematoxylin_r": f.hematoxylin_r}
            for name, f in rows.items()
        },
    }


def _amounts(amounts: Amounts) -> dict[str, float]:
    positive = float(amounts.shares[SCALES[-1]][0])
    return {"dab_positive": positive, "dab_p90": amounts.p90, "dab_integrated": amounts.integrated}


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
