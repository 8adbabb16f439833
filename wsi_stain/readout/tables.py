"""The figures of blocks and regions as columns; CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.files.atomic import atomic_write, replacing
from wsi_stain.measure.stains import percentile
from wsi_stain.readout.interval import Interval
from wsi_stain.readout.work import Sums

Columns = Mapping[str, np.ndarray]
"""Name → values (n,); `nan` where a figure is undefined."""
DIGITS = 6


def block_columns(rows: np.ndarray, um: int, *, scale: float, mpp: float, interval: Interval) -> Columns:
    """The figures of blocks.

    Args:
        rows: `work.ROW` (n,).
        um: side of the blocks in µm.
        scale: level-0 px per px of the view.
        mpp: µm per px of the view.
        interval: bounds of the predicted share.
    """
    tissue = rows["tissue_px"].astype(float)
    classes = np.stack([rows[name] for name in ("weak_px", "moderate_px", "strong_px")], axis=-1) / tissue[:, None]
    share = classes.sum(-1)
    columns = {
        "x": rows["x0"] * scale,
        "y": rows["y0"] * scale,
        "width": (rows["x1"] - rows["x0"]) * scale,
        "height": (rows["y1"] - rows["y0"]) * scale,
        "tissue_um2": tissue * mpp**2,
        "dab_positive": share,
        "h_score": 100 * classes @ np.array([1, 2, 3]),
    }
    for stain in ("dab", "hematoxylin"):
        columns |= {
            f"{stain}_mean": rows[f"{stain}_sum"] / tissue,
            f"{stain}_p90": rows[f"{stain}_p90"],
            f"{stain}_integrated": rows[f"{stain}_sum"] * mpp**2,
        }
    bounds = interval.bounds(share, um)
    return (
        columns if bounds is None else {**columns, "dab_positive_low": bounds[:, 0], "dab_positive_high": bounds[:, 1]}
    )


def figures(sums: Sums, mpp: float) -> dict[str, float]:
    """The figures of an area; densities in OD, areas in µm², the H-score in 0–300; `nan` without tissue."""
    n = sums.tissue_px or float("nan")
    weak, moderate, strong = (float(c) / n for c in sums.classes[1:])
    values = {
        "area_um2": sums.area_px * mpp**2,
        "tissue_um2": sums.tissue_px * mpp**2,
        "dab_positive": weak + moderate + strong,
        "dab_weak": weak,
        "dab_moderate": moderate,
        "dab_strong": strong,
        "h_score": 100 * (weak + 2 * moderate + 3 * strong),
    }
    for stain, total, histogram in (
        ("dab", sums.dab_sum, sums.dab),
        ("hematoxylin", sums.hematoxylin_sum, sums.hematoxylin),
    ):
        values |= {
            f"{stain}_mean": total / n,
            f"{stain}_p90": float(percentile(histogram, 90)),
            f"{stain}_integrated": total * mpp**2,
        }
    return values


def write_table(folder: Path, name: str, columns: Mapping[str, Any]) -> list[Path]:
    """Write `name.csv`, and `name.parquet` where pyarrow is installed; returns the paths."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    paths = [folder / f"{name}.csv"]
    atomic_write(paths[0], text.getvalue())
    try:
        arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError:  # an extra
        return paths
    paths.append(folder / f"{name}.parquet")
    with replacing(paths[1]) as temporary:
        parquet.write_table(arrow.table(dict(columns)), temporary)
    return paths


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{round(float(value), DIGITS):.12g}"
