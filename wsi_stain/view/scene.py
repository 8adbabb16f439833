"""What a page shows of one slide: its H&E, its stain (finished, or painted while one looks), outlines and facts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain import __version__
from wsi_stain.conversion.input_check import check_input
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import MaskError
from wsi_stain.files import record
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.geometry import Box
from wsi_stain.measure.deconvolution import HE_BACKGROUND, Background
from wsi_stain.output.channel_file import ChannelFile
from wsi_stain.output.origin import provenance
from wsi_stain.slide.files import digest
from wsi_stain.slide.slide import Slide
from wsi_stain.tissue.detect import find_tissue
from wsi_stain.tissue.geojson import outlines
from wsi_stain.tissue.mask import TissueMask, from_geojson
from wsi_stain.view.layers import ChannelLayer, DabLayer, FileLayer, Layer, LiveLayer, Pixels
from wsi_stain.view.painting import Painting
from wsi_stain.view.shown import Shown
from wsi_stain.view.stainer import MOST_PX, Stainer

MOST_CELLS = 1024
"""Cells along the longer side of a mask whose outlines a page gets."""
ENDINGS = (".ome.tiff", ".ome.tif", ".ome.zarr", ".dcm")


@dataclass(frozen=True, slots=True)
class Source:
    """How to open a slide for a page."""

    name: str
    request: ConvertRequest
    """The slide, and the settings with which it is stained."""
    virtual: Path | None = None
    """A finished stain; None stains on demand."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the stain lies on the slide, in px of the slide's level 0."""

    x: float
    y: float
    scale: float
    """Level-0 px of the slide per px of the stain."""

    def of_slide(self, x: float, y: float, w: float, h: float) -> list[float]:
        """A box (x, y, w, h) of the stain in px of the slide."""
        return [self.x + x * self.scale, self.y + y * self.scale, w * self.scale, h * self.scale]


class Scene:
    """One slide, open. `close` ends staining and gives the lock back.

    Raises:
        WsiStainError: the slide, the stain, the model or the output cannot be used.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        request = source.request
        self.slide = Slide.open(request.slide, mpp=request.mpp, image=request.image, z=request.z)
        self.stainer: Stainer | None = None
        self.warnings: list[str] = []
        self._is_checked = False
        self._stain_file: FileLayer | ChannelLayer | None = None
        self.dab: DabLayer | None = None
        """None for fluorescence."""
        try:
            self.he = FileLayer(self.slide)
            virtual = source.virtual or self._open_painting(request)
            if virtual is not None:
                self._open_finished(virtual)
        except BaseException:
            self.slide.close()
            raise

    def layer(self, name: str) -> Layer | None:
        """`he`, `stain` or `dab`."""
        layers: dict[str, Layer | None] = {"he": self.he, "stain": self.stain, "dab": self.dab}
        return layers.get(name)

    def describe(self) -> dict[str, Any]:
        """All that the page needs to show it."""
        size = self.slide.size
        return {
            "name": self.source.name,
            "size": size,
            "mpp": self.slide.mpp_or_none,
            "he": [level.as_dict() for level in self.he.levels],
            "stain": [level.as_dict() for level in self.stain.levels],
            "place": [self.place.x, self.place.y, self.place.scale],
            "live": self.stainer is not None,
            "dab": self.dab is not None,
            "most_px": MOST_PX,
            "facts": self._facts,
            "notice": f"VIRTUAL STAIN – {RESEARCH_USE.lower()}",
        }

    def state(self) -> dict[str, Any]:
        """What changes while the page is open."""
        if self.stainer is None:
            return {"version": 0, "share": 1.0, "complete": True, "warnings": self.warnings}
        return {**self.stainer.state(), "warnings": self.warnings}

    @property
    def version(self) -> int:
        """Grows with every change of `state`."""
        return 0 if self.stainer is None else self.stainer.version

    def outlines(self, kind: str) -> list[list[list[float]]]:
        """Rings of (x, y) in px of the slide: around `tissue`, or what was `unreadable`."""
        if kind == "unreadable":
            return [_ring(*self.place.of_slide(*box)) for box in self._unreadable()]
        return list(_rings(self._mask(), self.slide))

    def check_source(self) -> None:
        """Warn, at the first call, if the slide does not suit: it takes seconds, as it reads the slide.

        A finished stain may have been made from another slide; a slide to be stained may not be what the model knows.
        """
        if self._is_checked:
            return
        self._is_checked = True
        if self.stainer is not None:
            verdict = check_input(self.stainer.painting.survey)
            if verdict is not None and verdict.level != "ok":
                self.warnings.append(f"the stain is not to be trusted: this slide {'; it '.join(verdict.reasons)}")
            return
        expected = self._facts.get("source", "")
        if expected and digest(self.slide.path)[0] != expected:
            self.warnings.append("this stain was made from another slide than the H&E that is shown")

    def close(self) -> None:
        """Stop staining, give the lock back, close the files."""
        if self.stainer is not None:
            self.stainer.close()
            self.stainer.painting.close()
            self.stainer.join()
            self._own.close()
        if self._stain_file is not None:
            self._stain_file.close()
        self.he.close()

    def _open_painting(self, request: ConvertRequest) -> Path | None:
        """Open the canvas; gives the output instead if it is already finished."""
        painting = Painting(request)
        if painting.is_done:
            return painting.job.output
        self._own = painting.job.view.open().slide  # the painter closes its own when staining ends
        survey, grid = painting.survey, painting.job.grid
        self.stain: Pixels = LiveLayer(painting, Shown(painting, self._own))
        if not survey.bundle.channels:
            self.dab = DabLayer(self.stain, survey.bundle.background_colour)
        scale = float(survey.scale)
        self.place = Place(grid.region.x0 * scale, grid.region.y0 * scale, scale)
        model = f"{survey.bundle.name} {survey.bundle.version}"
        self._facts = {"stain": survey.bundle.stain, "model": model, "software": f"wsi-stain {__version__}"}
        self.stainer = Stainer(painting)
        return None

    def _open_finished(self, path: Path) -> None:
        channels, self._virtual = ChannelFile.open(path), path
        stain = channels or Slide.open(path)
        self._stain_file = ChannelLayer(stain) if isinstance(stain, ChannelFile) else FileLayer(stain)
        self.stain = self._stain_file
        self._record = record.read(record.path_of(path))
        annotations = provenance(path)
        self._facts = {
            "stain": annotations.get("stain", path.name),
            "model": " ".join(annotations[key] for key in ("model", "model_version") if key in annotations),
            "software": annotations.get("software", ""),
            "device": str(self._record.get("device", "")),
            "source": annotations.get("source_sha256", ""),
            "virtual": "" if annotations else "unknown origin",
        }
        if channels is None:
            self.dab = DabLayer(self.stain, _background(self._record))
        self.place = _place(self.slide, stain, annotations.get("region"))

    def _mask(self) -> TissueMask:
        if self.stainer is not None:
            return self.stainer.painting.survey.mask
        ending = next((e for e in ENDINGS if self._virtual.name.lower().endswith(e)), "")
        stem = self._virtual.name[: len(self._virtual.name) - len(ending)]
        try:
            return from_geojson(self._virtual.with_name(stem + ".tissue.geojson"), self.slide.size)
        except MaskError:
            return find_tissue(self.slide)

    def _unreadable(self) -> Iterator[tuple[float, float, float, float]]:
        """Boxes (x, y, w, h) of the stain."""
        if self.stainer is None:
            yield from (tuple(box) for box in self._record.get("unreadable", ()))
            return
        painting = self.stainer.painting
        for notes in painting.canvas.store.notes():
            for box in notes["unreadable"]:
                at = painting.job.grid.in_output(Box(*box) & painting.job.grid.region)
                yield at.x0, at.y0, at.size.w, at.size.h


class Scenes:
    """The slides of a server, by number; at most `MOST_OPEN` are open, and one that stains stays open."""

    MOST_OPEN = 4
    """A slide takes up to 130 MiB: caches of decoded and encoded tiles."""

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources
        self._open: dict[int, Scene] = {}
        self._lock = threading.Lock()

    def get(self, number: int) -> Scene:
        """The scene of a slide, opened at the first call.

        Raises:
            WsiStainError: it cannot be opened.
        """
        with self._lock:
            scene = self._open.pop(number, None) or Scene(self.sources[number])
            self._open[number] = scene  # the last one used is the last one to be closed
            finished = [n for n, other in self._open.items() if other.stainer is None]
            for other in finished[: -self.MOST_OPEN]:
                self._open.pop(other).close()
            return scene

    def close(self) -> None:
        """Close all."""
        with self._lock:
            for scene in self._open.values():
                scene.close()
            self._open.clear()


def _background(run: dict[str, Any]) -> Background:
    """The background of a stain, as its record states it."""
    fingerprint = run.get("fingerprint", {})
    background = fingerprint.get("background") or fingerprint.get("glass")  # `glass` in records of older versions
    return (background[0], background[1], background[2]) if background else HE_BACKGROUND


def _place(slide: Slide, stain: Slide | ChannelFile, region: str | None) -> Place:
    """Where a finished stain lies: by its pixel size and region, else as wide as the slide."""
    if slide.mpp_or_none and stain.mpp_or_none:
        scale = Fraction(str(stain.mpp_or_none)) / Fraction(str(slide.mpp))
    else:
        scale = Fraction(slide.size.w, stain.size.w)
    x, y = 0, 0
    if region:
        x, y = (int(value) for value in region.split(",")[:2])
    down, across = (scale / stretch for stretch in slide.stretch)
    return Place(float(x // across * scale), float(y // down * scale), float(scale))


def _rings(mask: TissueMask, slide: Slide) -> Iterator[list[list[float]]]:
    """The outlines of a mask, with coarser cells if it has many."""
    step = -(-max(mask.array.shape) // MOST_CELLS)
    h, w = mask.array.shape
    padded = np.pad(mask.array, ((0, -h % step), (0, -w % step)))
    cells = np.asarray(padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).any((1, 3)))
    for ring in (ring for part in outlines(cells) for ring in part):
        corners = np.minimum(ring * float(mask.scale * step), (slide.size.w, slide.size.h))
        yield np.round(corners, 1).tolist()


def _ring(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
