"""Plots of a result as PNG: scatter and Bland–Altman of the positive share, histograms of DAB density.

Rendered by matplotlib's Agg on separate figures: no display, no global state, the same bytes in every run.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsi_stain.evaluate.columns import SCALES
from wsi_stain.evaluate.evaluate import EvaluationResult
from wsi_stain.evaluate.figures import BINS, FIELD, MOST_OD

DPI = 150
COLOURS = ("#1f6fb4", "#d1652b", "#3d8f5f", "#8a5bb0", "#b3892d", "#4d9fa8")
INK, RULE, GREY = "#333333", "#d9d9d9", "#8c8c8c"


def agreement(result: EvaluationResult, row: str, colour: str) -> bytes:
    """Generated against real positive share, and their differences, for fields and for the larger blocks: PNG."""
    figure = Figure(figsize=(12, 3.3), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 4)
    for i, (scale, what) in enumerate(((FIELD, "fields"), (SCALES[0], f"blocks of {SCALES[0]}"))):
        generated, real = (100 * share for share in result.shares(row, scale))
        _style(axes[2 * i], f"{what} (n = {len(real)})")
        _style(axes[2 * i + 1], f"{what}, Bland–Altman")
        _scatter(axes[2 * i], generated, real, colour)
        _bland_altman(axes[2 * i + 1], result, (row, scale), colour)
    return _png(figure)


def _scatter(axes: Axes, generated: np.ndarray, real: np.ndarray, colour: str) -> None:
    most = 1.06 * max(1.0, generated.max(initial=0), real.max(initial=0))
    axes.plot([0, most], [0, most], color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.scatter(real, generated, **_dots(len(real)), color=colour)
    axes.set(xlim=(-0.03 * most, most), ylim=(-0.03 * most, most), xlabel="real, % DAB+", ylabel="generated, % DAB+")


def _bland_altman(axes: Axes, result: EvaluationResult, which: tuple[str, str], colour: str) -> None:
    generated, real = (100 * share for share in result.shares(*which))
    axes.scatter((generated + real) / 2, generated - real, **_dots(len(real)), color=colour)
    limits = result.agreement(*which)
    for value, style in ((limits.bias, "-"), (limits.low, (0, (4, 3))), (limits.high, (0, (4, 3)))):
        if not np.isnan(value):
            axes.axhline(100 * value, color=INK, lw=0.9, ls=style, zorder=3)
            text = axes.annotate(f"{100 * value:+.1f}", (1, 100 * value), xycoords=("axes fraction", "data"))
            text.set(fontsize=7.5, ha="left", va="center", color=INK, position=(1.02, 100 * value))
    axes.set(xlabel="mean of both, % DAB+", ylabel="generated − real, percentage points")


def maps(generated: np.ndarray, real: np.ndarray, extent_mm: tuple[float, float]) -> bytes:
    """Positive share of every block of a slide, real, generated and their difference: PNG.

    Args:
        generated: float64 (rows, columns), 0-1; NaN where nothing is compared.
        real: likewise.
        extent_mm: height and width of the blocks together, in the frame of the H&E.
    """
    height, width = extent_mm
    figure = Figure(figsize=(12, min(8.0, 0.8 + 3.6 * height / width)), dpi=DPI, layout="constrained")
    most = max(1.0, *(100 * float(np.nanmax(values)) for values in (generated, real)))
    shown = (
        ("real, % DAB+", real, "viridis", (0, most)),
        ("generated, % DAB+", generated, "viridis", (0, most)),
        ("generated − real, percentage points", generated - real, "RdBu_r", (-most, most)),
    )
    for axes, (title, values, colours_of, (low, high)) in zip(figure.subplots(1, 3), shown, strict=True):
        _style(axes, title, box=None)
        extent = (0.0, width, height, 0.0)
        image = axes.imshow(100 * values, extent=extent, cmap=colours_of, vmin=low, vmax=high, interpolation="nearest")
        axes.set(xlabel="mm")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return _png(figure)


def histograms(result: EvaluationResult, rows: list[str]) -> bytes:
    """DAB densities of all tissue pixels, real and generated: PNG; rows without images are omitted."""
    figure = Figure(figsize=(12, 3.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _style(axes, "", box=None)
    edges = np.linspace(0, MOST_OD, BINS + 1)
    real = np.sum([f.real.histogram for f in result.figures[rows[0]]], 0)
    axes.stairs(_percent(real), edges, fill=True, color="#c8b8a6", label="real stain")
    for row, colour in zip(rows, _cycle(len(rows)), strict=True):
        counts = np.sum([f.generated.histogram for f in result.figures[row]], 0)
        if counts.any():
            axes.stairs(_percent(counts), edges, color=colour, lw=1.6, label=row)
    axes.set(xlim=(0, MOST_OD), ylim=(1e-3, 200), yscale="log", xlabel="DAB density, OD", ylabel="% of tissue pixels")
    axes.legend(frameon=False, fontsize=8.5)
    return _png(figure)


def colours(rows: list[str]) -> dict[str, str]:
    """One colour per row, the same in all plots."""
    return dict(zip(rows, _cycle(len(rows)), strict=True))


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _percent(counts: np.ndarray) -> np.ndarray:
    return 100 * counts / max(counts.sum(), 1)


def _dots(n: int) -> dict[str, Any]:
    """Marker style: smaller and more transparent if there are many."""
    return {"s": 18 if n < 300 else 7, "alpha": 0.75 if n < 300 else 0.35, "linewidths": 0, "zorder": 2}


def _style(axes: Axes, title: str, *, box: float | None = 1.0) -> None:
    axes.set_title(title, fontsize=9.5, color=INK)
    axes.grid(color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_box_aspect(box)
    axes.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.xaxis.label.set_fontsize(8.5)
    axes.yaxis.label.set_fontsize(8.5)


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    FigureCanvasAgg(figure).print_png(target, metadata={"Software": None})
    return target.getvalue()
