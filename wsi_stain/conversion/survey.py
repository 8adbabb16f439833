"""The survey of a conversion: what the slide, the model and the mask give, before anything is written."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

from wsi_stain.cluster.workers import ask
from wsi_stain.config.convert import Precision
from wsi_stain.config.loader import dump
from wsi_stain.conversion.refusal import check_source
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.view import ViewSpec, stained
from wsi_stain.errors import ConfigError, MaskError, SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import Bundle
from wsi_stain.slide.files import digest, stamp
from wsi_stain.slide.slide import Slide, View
from wsi_stain.tiling.grid import Block, TileGrid
from wsi_stain.tissue.detect import find_tissue
from wsi_stain.tissue.mask import TissueMask, everything, from_geojson

NormSource = Literal["frozen", "slide", "tile"]
"""Where a network takes its normalization statistics from: its training, the slide, or each tile."""


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the slide is read, as its record states it; None where there is nothing to state."""

    image: int | None
    plane: int | None
    notes: tuple[str, ...]
    """What the reader chose for the user, as sentences."""
    bounds: tuple[int, int, int, int] | None
    """The scan on the glass: (x, y, w, h) in level-0 px as the file stores them."""
    stored_mpp: tuple[float, float] | None
    """µm per px along (x, y) as stored, if the pixels are not square."""

    @classmethod
    def of(cls, slide: Slide) -> Reading:
        """How an open slide is read."""
        if slide.stretch == (1, 1):
            return cls(slide.image, slide.plane, slide.notes, slide.bounds, None)  # it may have no pixel size
        down, across = (float(slide.mpp * stretch) for stretch in slide.stretch)
        return cls(slide.image, slide.plane, slide.notes, slide.bounds, (across, down))

    def as_dict(self) -> dict[str, Any]:
        """What there is to state, for `run.json`."""
        return {key: value for key, value in dump(self).items() if value not in (None, [])}


@dataclass(frozen=True, slots=True)
class Survey:
    """What a conversion starts from. Surveying looks; it writes and deletes nothing.

    All boxes are in the view's frame.
    """

    request: ConvertRequest
    bundle: Bundle
    precision: Precision
    """What `auto` selects on the staining devices; fixed here, since it changes the pixels."""
    norm: NormSource
    source_sha256: str
    source_bytes: int
    source_stamp: str
    """Names, sizes and times of the slide's files, hashed."""
    view: ViewSpec
    view_mpp: float | None
    """µm per px of the view; None if the slide has no pixel size and the model works at level 0."""
    scale: Fraction
    """Level-0 px per px of the view."""
    region: tuple[int, int, int, int]
    """What is converted: (x, y, w, h) in level-0 px as the file stores them."""
    reading: Reading
    magnification: float | None
    icc: str | None
    """Description of the colour profile that is applied to the slide; None if none is."""
    mask: TissueMask
    grid: TileGrid
    """The tiles of the view, and the blocks of its converted region."""
    blocks: tuple[Block, ...]
    tissue: Mapping[tuple[int, int], tuple[Box, ...]]
    """The tissue tiles that each block owns, by the index of the block; every tissue tile of the region once."""

    @classmethod
    def of(
        cls, request: ConvertRequest, *, source: tuple[str, int] | None = None, like: Survey | None = None
    ) -> Survey:
        """Survey the slide of a request.

        Args:
            request: what to convert.
            source: SHA-256 and bytes of the slide, if known; hashing a gigapixel takes seconds.
            like: a survey of the same slide and mask for another model; neither is examined again.

        Raises:
            WsiStainError: the slide, the model, the mask or the region cannot be used.
        """
        source_stamp = stamp(request.slide)  # before anything is read
        bundle = Bundle.open(request.model)
        if bundle.channels and request.config.output.compat_openslide:
            raise ConfigError(
                f"--compat openslide: {bundle.name} makes {len(bundle.channels)} fluorescence channels, and OpenSlide "
                "reads colours only; omit it"
            )
        precision = _precision(request, bundle)
        spec = ViewSpec(
            slide=request.reachable(request.slide),
            mpp=request.mpp,
            model_mpp=bundle.mpp,
            allow_upsampling=request.allow_upsampling,
            image=request.image,
            z=request.z,
        )
        view = spec.open()
        with view.slide:
            check_source(view.slide, allow_virtual=request.allow_virtual, force_brightfield=request.force_brightfield)
            mask = _mask(request, view.slide) if like is None else like.mask
            grid = _grid(request, bundle, view)
            magnification, icc = _magnification(view), view.slide.icc
            reading, stored = Reading.of(view.slide), view.slide.stored_size
        for note in reading.notes:
            log.warning("%s", note)
        blocks = tuple(grid.blocks())
        if like is not None and like.source_stamp == source_stamp:
            source = like.source_sha256, like.source_bytes
        sha256, size = source or digest(request.slide)
        return cls(
            request,
            bundle,
            precision,
            _norm(request, bundle),
            sha256,
            size,
            source_stamp,
            spec,
            None if view.mpp is None else float(view.mpp),
            view.scale,
            request.region or (0, 0, stored.w, stored.h),
            reading,
            magnification,
            icc,
            mask,
            grid,
            blocks,
            tissue={block.index: tuple(stained(grid.owned(block), mask, view)) for block in blocks},
        )

    @property
    def tiles(self) -> int:
        """Number of tiles that touch the region."""
        return self.grid.count(self.grid.region)

    @property
    def tissue_tiles(self) -> int:
        """Number of tiles with tissue."""
        return sum(map(len, self.tissue.values()))


def _precision(request: ConvertRequest, bundle: Bundle) -> Precision:
    if request.scheduler is None:
        return bundle.precision(request.device, request.precision)
    if request.precision != "auto":
        return request.precision  # the devices of the workers matter, not those of this machine
    choices = sorted(set(ask(request.scheduler, partial(bundle.precision, request.device, "auto"))))
    if len(choices) > 1:
        raise ConfigError(
            f"the workers of {request.scheduler} are fastest in different precisions ({', '.join(choices)}), so the "
            f"pixels would depend on the worker; choose one for all, for example --precision {choices[-1]}"
        )
    return choices[0]


def _norm(request: ConvertRequest, bundle: Bundle) -> NormSource:
    if bundle.has_tile_statistics:
        return request.norm or "slide"
    if request.norm is not None:
        raise ConfigError(
            f"--norm is {request.norm}, but the statistics of {bundle.name} were frozen in training; omit --norm"
        )
    return "frozen"


def _mask(request: ConvertRequest, slide: Slide) -> TissueMask:
    if request.mask == "none":
        return everything(slide.size)
    if request.mask != "auto" and slide.stretch != (1, 1):
        raise MaskError(
            f"the pixels of {slide.path.name} are not square, and a mask drawn on them does not fit the squares that "
            "are read; omit --mask, or convert the slide to square pixels first"
        )
    return find_tissue(slide) if request.mask == "auto" else from_geojson(Path(request.mask), slide.size)


def _grid(request: ConvertRequest, bundle: Bundle, view: View) -> TileGrid:
    config = request.config.grid
    return TileGrid(
        view.size,
        bundle.tile if config.tile is None else config.tile,
        bundle.overlap if config.overlap is None else config.overlap,
        bundle.multiple,
        region=_region(request, view),
        block=config.block,
    )


def _region(request: ConvertRequest, view: View) -> Box:
    """The box to convert in the view's frame, rounded outwards; `--region` is in the slide's frame."""
    if request.region is None:
        return Box.of(view.size)
    slide = view.slide
    (x, y, w, h), size = request.region, slide.stored_size
    box = Box.at(y, x, Size(h, w))
    if w < 1 or h < 1 or not Box.of(size).contains(box):
        raise SlideError(
            f"the region {x},{y},{w},{h} (x, y, width, height) is not inside the slide, which is "
            f"{size.w} × {size.h} px at level 0; pass another --region"
        )
    down, across = (view.scale / stretch for stretch in slide.stretch)
    low = (math.floor(box.y0 / down), math.floor(box.x0 / across))
    return Box(*low, math.ceil(box.y1 / down), math.ceil(box.x1 / across)) & Box.of(view.size)


def _magnification(view: View) -> float | None:
    """Magnification for viewers: that of the slide, scaled, unless it contradicts µm/px (10× is 1 µm/px)."""
    power = view.slide.magnification
    own = None if power is None else float(power / view.scale)
    if view.mpp is None:
        return own
    usual = 10 / view.mpp
    if own is not None and abs(own / usual - 1) < 0.2:
        return round(own, 2)
    steps = (1.25, 2.5, 5, 10, 20, 40, 60, 80, 100)
    nearest = min(steps, key=lambda step: abs(step / usual - 1))
    return nearest if abs(nearest / usual - 1) < 0.1 else round(usual, 2)
