"""Draws what an examination for seams found: how much each line stands out, and a field with the lines marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsi_stain.conversion.examine import Examination
from wsi_stain.files.atomic import replacing
from wsi_stain.files.notice import RESEARCH_USE

SEAM, CLEAN = "#c00000", "#707070"


def draw(result: Examination, path: Path, title: str) -> None:
    """Write a PNG: the rows and columns, their conspicuous grid, and a field at 1:1 beside the same with more contrast.

    Args:
        result: what to draw.
        path: the file; one that exists is replaced.
        title: what was examined.
    """
    figure = Figure(figsize=(11, 10), dpi=100, layout="constrained")
    figure.suptitle(f"{title}: {'SEAMS' if result.has_seams else 'no seams'} ({RESEARCH_USE.lower()})")
    axes: Any = figure.subplots(3, 2, gridspec_kw={"height_ratios": [1, 1, 2.6]})
    for row, (report, profile) in enumerate(zip(result.axes, result.profiles, strict=True)):
        panel = axes[row, 0].get_gridspec()
        for column in (0, 1):
            axes[row, column].remove()
        whole: Any = figure.add_subplot(panel[row, :])
        whole.plot(profile, linewidth=0.5, color=CLEAN)
        lines = np.arange(report.virtual.offset, len(profile), report.virtual.period or len(profile))
        colour = SEAM if report.is_seam else CLEAN
        whole.plot(lines, profile[lines], "o", markersize=4, color=colour)
        whole.set(title=report.sentence, xlabel=f"{report.axis}, px", ylabel="step above its\nsurroundings, σ")
        whole.title.set(fontsize=8, color=colour)
    for column, factor in ((0, 1), (1, 3)):
        panel = axes[2, column]
        mean = result.field.mean((0, 1))
        panel.imshow(np.clip((result.field - mean) * factor + mean, 0, 255).astype(np.uint8), interpolation="nearest")
        panel.set(title="field at 1:1" if factor == 1 else "contrast × 3", xticks=[], yticks=[])
        _mark(panel, result)
    with replacing(path) as temporary, temporary.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def _mark(panel: Any, result: Examination) -> None:
    """Ticks at the ends of the lines, so that the field itself stays free."""
    h, w = result.field.shape[:2]
    for report, start, length in zip(result.axes, (result.box.x0, result.box.y0), (w, h), strict=True):
        period, colour = report.virtual.period, SEAM if report.is_seam else CLEAN
        for at in range(length) if period else ():
            if (start + at - report.virtual.offset) % period == 0:
                across = ([at - 0.5] * 2, [0, 16]) if report.axis == "columns" else ([0, 16], [at - 0.5] * 2)
                panel.plot(*across, color=colour, linewidth=2)
