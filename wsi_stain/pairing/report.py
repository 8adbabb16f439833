"""The page of a case: do the two slides correspond, and what do the pairs look like?"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from wsi_stain.config.ranges import MAX_MPP
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.files.page import embedded, jpeg, template
from wsi_stain.geometry import Box
from wsi_stain.pairing.cut import PairTile
from wsi_stain.registration.residuals import HOLDS_PX, Residuals
from wsi_stain.registration.structure import places
from wsi_stain.registration.transform import Transform
from wsi_stain.slide.slide import Slide

WIDTH_PX = 700
SCALES_UM = (None, 4000.0, 1500.0)
"""Width of the overlays in µm; None is the whole slide."""
SQUARES = 8
"""Squares of a checkerboard along its longer side."""
SAMPLES = 3


def html(
    content: Mapping[str, Any],
    he: Slide,
    ihc: Slide,
    transform: Transform,
    off: Residuals | None,
    tiles: Sequence[tuple[str, PairTile]],
    folder: Path,
) -> str:
    """The whole page, without links to other files."""
    is_refused = content["registration"]["verdict"] == "refuse"
    return template("wsi_stain.pairing", "report.html.jinja").render(
        content=content,
        research_use=RESEARCH_USE,
        thumbnails=[(slide.path.name, _encoded(slide.thumbnail(WIDTH_PX))) for slide in (he, ihc)],
        overlays=[] if is_refused else _overlays(he, ihc, transform, off),
        grid="" if is_refused else _figure(_deformation(he, transform)),
        residuals="" if off is None else _figure(_residual_map(he, off)),
        samples=_samples(tiles, folder),
    )


def _overlays(he: Slide, ihc: Slide, transform: Transform, off: Residuals | None) -> list[dict[str, Any]]:
    """Both slides in one frame, at three scales: for the checkerboard, and for the curtain that the page draws."""
    whole_um = np.array(he.size) * he.mpp
    centre = whole_um / 2
    if off is not None and off.holds.any():  # among the windows that hold, the one in the middle
        holding = off.points[off.holds]
        centre = holding[np.linalg.norm(holding - np.median(holding, axis=0), axis=1).argmin()]
    overlays = []
    for width in SCALES_UM:
        extent = whole_um if width is None else np.full(2, min(width, whole_um.max()))
        corner = np.zeros(2) if width is None else centre - extent / 2
        um = float(extent.max()) / WIDTH_PX
        shape = tuple(max(1, round(n / um)) for n in extent)
        points = places(shape, um, (float(corner[0]), float(corner[1])))
        ours, theirs = _sampled(he, points, um), _sampled(ihc, transform(points), um)
        side = max(1, -(-max(shape) // SQUARES))
        y, x = np.indices(shape) // side
        board = np.where(((y + x) % 2 == 0)[..., None], ours, theirs)
        overlays.append(
            {
                "label": "the whole slide" if width is None else f"{extent.max() / 1000:.1f} mm",
                "board": _encoded(board),
                "he": _encoded(ours),
                "ihc": _encoded(theirs),
            }
        )
    return overlays


def _sampled(slide: Slide, points: np.ndarray, um: float) -> np.ndarray:
    """The colours of a slide at points (h, w, 2) in µm: uint8 (h, w, 3), white beyond it."""
    white = (255, 255, 255)
    if um > MAX_MPP:
        image = slide.thumbnail(max(1, round(max(slide.size) * slide.mpp / um)))
        maps = points / (max(slide.size) * slide.mpp / max(image.shape[:2])) - 0.5
    else:
        view = slide.at(um, allow_upsampling=True)
        maps = points / um - 0.5
        low, high = np.floor(maps.min((0, 1))).astype(int), np.ceil(maps.max((0, 1))).astype(int) + 1
        box = Box(int(low[0]), int(low[1]), int(high[0]), int(high[1])) & Box.of(view.size)
        if not box.area:
            return np.full((*points.shape[:2], 3), 255, np.uint8)
        image, maps = view.read(box), maps - (box.y0, box.x0)
    y, x = np.moveaxis(maps.astype(np.float32), -1, 0)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=white)


def _deformation(he: Slide, transform: Transform) -> Figure:
    """The non-rigid part as a grid over the H&E, drawn to scale."""
    figure = _over(he)
    axes = figure.axes[0]
    height, width = np.array(he.size) * he.mpp
    for number, piece in enumerate(transform.pieces):
        for is_row in (True, False):
            along = np.linspace(0, width if is_row else height, 300)
            for at in np.linspace(0, height if is_row else width, 25 if is_row else 35):
                line = np.stack([np.full(300, at), along] if is_row else [along, np.full(300, at)], -1)
                moved = line + piece.field(line)
                moved[transform.fragments(line) != number] = np.nan
                axes.plot(moved[:, 1] / 1000, moved[:, 0] / 1000, color="#0b6", linewidth=0.6)
    return figure


def _residual_map(he: Slide, off: Residuals) -> Figure:
    figure = _over(he)
    axes = figure.axes[0]
    y, x = off.points.T / 1000
    shown = axes.scatter(x, y, c=off.off_um, s=9, cmap="viridis_r", vmin=0, vmax=2 * HOLDS_PX * off.um)
    figure.colorbar(shown, ax=axes, label="off by, µm", shrink=0.8)
    return figure


def _over(he: Slide) -> Figure:
    """A figure whose axes, in mm, show the H&E."""
    thumbnail = he.thumbnail(WIDTH_PX)
    height, width = np.array(he.size) * he.mpp / 1000
    figure = Figure(figsize=(7, max(2.5, 7 * height / width)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(thumbnail, extent=(0, width, height, 0), alpha=0.6)
    axes.set(xlim=(0, width), ylim=(height, 0), xlabel="mm")
    return figure


def _samples(tiles: Sequence[tuple[str, PairTile]], folder: Path) -> list[dict[str, Any]]:
    """Pairs from the best, the middle and the worst of the order by confidence and misalignment."""
    order = sorted(tiles, key=lambda item: (-item[1].confidence, item[1].misalignment_um))
    middle = max(0, (len(order) - SAMPLES) // 2)
    groups = {"best": order[:SAMPLES], "median": order[middle : middle + SAMPLES], "worst": order[-SAMPLES:]}
    return [
        {
            "group": group,
            "off": f"{tile.misalignment_um:.1f}",
            "confidence": f"{tile.confidence:.2f}",
            "he": _encoded(_read(folder / "he" / name)),
            "ihc": _encoded(_read(folder / "ihc" / name)),
        }
        for group, items in groups.items()
        for name, tile in items
    ]


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _figure(figure: Figure) -> str:
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png")
    return embedded(file.getvalue())


def _encoded(pixels: np.ndarray) -> str:
    return jpeg(pixels, longest=WIDTH_PX)
