"""The one-page report of a read-out: the slide, its map, the figures, and what they rest on."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsi_stain.files.notice import NOTICE, RESEARCH_USE
from wsi_stain.files.page import embedded, jpeg, template

WIDTH_PX = 720
LABELS = {
    "tissue_um2": ("tissue, mm²", 1e-6, 3),
    "dab_positive": ("DAB-positive, %", 100, 2),
    "dab_positive_low": ("lower bound, %", 100, 2),
    "dab_positive_high": ("upper bound, %", 100, 2),
    "dab_weak": ("weak, %", 100, 2),
    "dab_moderate": ("moderate, %", 100, 2),
    "dab_strong": ("strong, %", 100, 2),
    "h_score": ("H-score of pixels", 1, 1),
    "dab_mean": ("DAB mean, OD", 1, 3),
    "dab_p90": ("DAB 90th percentile, OD", 1, 3),
    "dab_integrated": ("DAB integrated, OD·mm²", 1e-6, 4),
    "hematoxylin_mean": ("hematoxylin mean, OD", 1, 3),
    "hematoxylin_p90": ("hematoxylin 90th percentile, OD", 1, 3),
}
"""Figure → label, factor, decimals."""


def html(content: Mapping[str, Any], thumbnail: np.ndarray, share: np.ndarray) -> str:
    """The whole page, without scripts or links to other files.

    Args:
        content: content of `measure.json`.
        thumbnail: the slide, uint8 (h, w, 3).
        share: positive share of each block, float32 (h, w), NaN without tissue.
    """
    areas = content["figures"]
    shown = [name for name in LABELS if any(row.get(name) is not None for row in areas.values())]
    return template("wsi_stain.readout", "report.html.jinja").render(
        content=content,
        notice=NOTICE,
        research_use=RESEARCH_USE,
        labels=[LABELS[name][0] for name in shown],
        rows={area: [_text(row.get(name), name) for name in shown] for area, row in areas.items()},
        slide=jpeg(_picture(thumbnail, is_virtual=content["virtual"]), quality=88),
        heat=embedded(_map(share, thumbnail.shape[0] / thumbnail.shape[1])),
        settings=_settings(content["settings"]),
    )


def _text(value: float | None, name: str) -> str:
    _, factor, digits = LABELS[name]
    return "–" if value is None else f"{factor * value:.{digits}f}"


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    chosen, thresholds = settings["chosen"], settings["thresholds"]
    vectors = chosen["vectors"]
    source = vectors if isinstance(vectors, str) else ", ".join(f"{k} {v}" for k, v in vectors.items())
    return {
        "measured at": f"{settings['mpp']:g} µm/px",
        "tissue": chosen["tissue"],
        "background": f"({_numbers(settings['background'], 0)}), {chosen['background']}",
        "vector of hematoxylin": f"({_numbers(settings['hematoxylin'], 3)})",
        "vector of DAB": f"({_numbers(settings['dab'], 3)})",
        "vectors": source,
        "thresholds of DAB density": ", ".join(f"{k} {v:g}" for k, v in thresholds.items()),
    }


def _numbers(values: list[float], digits: int) -> str:
    return ", ".join(f"{v:.{digits}f}" for v in values)


def _picture(thumbnail: np.ndarray, *, is_virtual: bool) -> np.ndarray:
    """The slide, uint8 (h, w, 3), at most `WIDTH_PX` wide.

    A virtual stain is marked in the picture itself, which people copy out of the page.
    """
    h, w = thumbnail.shape[:2]
    width = min(w, WIDTH_PX)
    small = cv2.resize(thumbnail, (width, max(1, round(h * width / w))), interpolation=cv2.INTER_AREA)
    if is_virtual:
        scale = width / 1100
        (across, up), down = cv2.getTextSize(NOTICE, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        cv2.rectangle(small, (0, 0), (across + 8, up + down + 6), (255, 255, 255), -1)
        cv2.putText(small, NOTICE, (4, up + 4), cv2.FONT_HERSHEY_SIMPLEX, scale, (180, 0, 0), 1, cv2.LINE_AA)
    return small


def _map(share: np.ndarray, ratio: float) -> bytes:
    """PNG of the positive share with its colour scale; grey where there is no tissue."""
    figure = Figure(figsize=(7.2, min(14.0, 7.2 * ratio + 0.8)), dpi=100, layout="constrained")
    axes: Any = figure.subplots()
    axes.set_facecolor("#e8e8e8")
    percent = 100 * share
    most = max(1.0, float(np.nanmax(percent))) if np.isfinite(percent).any() else 1.0
    image = axes.imshow(percent, cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    figure.colorbar(
        image, ax=axes, label="DAB-positive, % of the tissue of a block of 64 µm", location="bottom", fraction=0.04
    )
    target = io.BytesIO()
    FigureCanvasAgg(figure).print_png(target, metadata={"Software": None})
    return target.getvalue()
