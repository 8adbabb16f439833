"""The plan of a conversion: sizes, tiles, blocks, disk and memory, and whether the output can be written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil

from wsi_stain.config.model import BundlePromise
from wsi_stain.conversion import provenance, seams
from wsi_stain.conversion.certificate import Tissue, calibration, places
from wsi_stain.conversion.job import Job, Kind
from wsi_stain.conversion.names import check_name
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.resources import disk_bytes, disk_free, gib, memory_bytes
from wsi_stain.conversion.source import check_source
from wsi_stain.errors import NoRoom, OutputError, SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import Bundle
from wsi_stain.output.canvas import CanvasSpec
from wsi_stain.slide.slide import Slide, View
from wsi_stain.tiling.grid import Block, TileGrid
from wsi_stain.tissue.detect import find_tissue
from wsi_stain.tissue.mask import TissueMask, everything, from_geojson

ENDINGS: dict[str, Kind] = {".ome.tiff": "tiff", ".ome.tif": "tiff", ".ome.zarr": "zarr"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What `convert` will do; planning writes nothing."""

    request: ConvertRequest
    job: Job
    fingerprint: dict[str, Any]
    """Everything that can change the output's bytes; a run resumes only with an equal fingerprint."""
    mask: TissueMask
    stain: str
    promise: BundlePromise | None
    """Largest difference of tiles from one pass that the bundle promises."""
    lines: tuple[seams.Line, ...]
    """Lines at which the output is examined for steps; `job.again` holds the tiles to stain a second time."""
    certificate: seams.Certificate | None
    """The certificate, if it needs no measurement."""
    magnification: float | None
    view_size: Size
    """The whole slide at the model's scale, in px."""
    tiles: int
    tissue_tiles: int
    tissue_tiles_todo: int
    blocks: tuple[Block, ...]
    todo: tuple[Block, ...]
    is_done: bool
    """Whether the finished output of the same settings already exists."""
    disk_bytes: int
    """Estimate of the bytes still to be written, an upper bound for usual slides."""
    disk_free_bytes: int
    memory_bytes: int
    """Estimate of the memory of the blocks in work, without the model."""

    @property
    def output(self) -> Path:
        """The final name of the output."""
        return self.job.canvas.output

    @property
    def mask_path(self) -> Path | None:
        """Path of the tissue mask next to the output; None without a mask, or if it would overwrite the user's file."""
        if self.request.mask == "none":
            return None
        path = self.output.with_name(self.output.name[: -len(_ending(self.output))] + ".tissue.geojson")
        return None if path.resolve() == Path(self.request.mask).resolve() else path


def plan(request: ConvertRequest, *, source: tuple[str, int] | None = None) -> Plan:
    """Work out what `convert(request)` will do.

    Args:
        request: the request.
        source: SHA-256 and bytes of the slide, if known; hashing a gigapixel takes seconds.

    Raises:
        WsiStainError: the slide, the model, the mask, the region or the output cannot be used.
    """
    bundle = Bundle.open(request.model)
    precision = provenance.precision(request, bundle)
    with Slide.open(request.slide, mpp=request.mpp) as slide:
        check_source(slide, allow_virtual=request.allow_virtual, force_brightfield=request.force_brightfield)
        view = slide.at(bundle.mpp, allow_upsampling=request.allow_upsampling)
        mask = _mask(request, slide)
        magnification = _magnification(slide, view)
        region = _region(request, view, slide.size)
        icc = slide.icc
    print_ = provenance.fingerprint(request, bundle, mask, region, view, source) | {
        "precision": precision,
        "icc_profile": icc or "none: pixels as stored",
    }
    job = _job(request, bundle, view, region, print_)
    grid = TileGrid(view.size, job.tile, job.overlap, bundle.multiple)
    blocks = tuple(grid.blocks(request.config.grid.block, region))
    done = provenance.is_done(job.canvas, print_, restart=request.restart)
    tissue = _tissue_of(job, mask, view, blocks)
    sites = places(grid, job, {} if bundle.is_pointwise or not request.config.certificate else tissue)
    job = replace(job, again=sites.again, calibration=calibration(job, tissue) if print_["norm"] == "slide" else ())
    todo = () if done else _todo(job, blocks, print_, restart=request.restart)
    left = sum(len(tissue[block.index]) for block in todo)
    return Plan(
        request,
        job,
        print_,
        mask,
        bundle.stain,
        bundle.promise,
        _within(mask, sites.lines, view),
        seams.POINTWISE if bundle.is_pointwise else None,
        magnification,
        view.size,
        tiles=grid.count(region),
        tissue_tiles=sum(map(len, tissue.values())),
        tissue_tiles_todo=left,
        blocks=blocks,
        todo=todo,
        is_done=done,
        disk_bytes=0 if done else disk_bytes(job, left / max(1, grid.count(region))),
        disk_free_bytes=disk_free(job.canvas.output),
        memory_bytes=memory_bytes(job, request.workers),
    )


def _tissue_of(job: Job, mask: TissueMask, view: View, blocks: tuple[Block, ...]) -> Tissue:
    """The tissue tiles that each block owns; a tile has one owner."""
    image = Box.of(view.size)
    return {
        block.index: [tile for tile in block.tiles if job.owns(block, tile) and mask.touches(tile & image, view.scale)]
        for block in blocks
    }


def _within(mask: TissueMask, lines: tuple[seams.Line, ...], view: View) -> tuple[seams.Line, ...]:
    """The lines within the mask's outline, if it has one: elsewhere a step may be the outline's."""
    if mask.outline is None:
        return lines
    return tuple(line for line in lines if mask.outline.inside(line.box & Box.of(view.size), view.scale).all())


def check_room(conversion_plan: Plan) -> None:
    """Check that disk and memory suffice for a plan.

    Raises:
        NoRoom: the disk or the memory is too small; the message gives both numbers.
    """
    if conversion_plan.disk_bytes > conversion_plan.disk_free_bytes:
        raise NoRoom(
            f"{conversion_plan.output} needs about {gib(conversion_plan.disk_bytes)} until it is finished, but "
            f"its disk has only {gib(conversion_plan.disk_free_bytes)} free; "
            "free some space, or choose another output with -o"
        )
    free = psutil.virtual_memory().available
    if conversion_plan.memory_bytes > free:
        raise NoRoom(
            f"the conversion needs about {gib(conversion_plan.memory_bytes)} of memory in addition to the model, "
            f"but only {gib(free)} are free; use fewer --workers or smaller blocks (--set grid.block=1024)"
        )


def _ending(output: Path) -> str:
    match = next((ending for ending in ENDINGS if output.name.lower().endswith(ending)), None)
    if match is None or len(output.name) == len(match):
        raise OutputError(
            f"the output is {str(output)!r}: its name must end in .ome.tiff, .ome.tif or .ome.zarr; "
            "choose another name with -o"
        )
    return match


def _mask(request: ConvertRequest, slide: Slide) -> TissueMask:
    if request.mask == "none":
        return everything(slide.size)
    return find_tissue(slide) if request.mask == "auto" else from_geojson(Path(request.mask), slide.size)


def _region(request: ConvertRequest, view: View, slide_size: Size) -> Box:
    """The box to convert in the view's px, rounded outwards."""
    if request.region is None:
        return Box.of(view.size)
    x, y, w, h = request.region
    box = Box.at(y, x, Size(h, w))
    if w < 1 or h < 1 or not Box.of(slide_size).contains(box):
        raise SlideError(
            f"the region {x},{y},{w},{h} (x, y, width, height) is not inside the slide, which is "
            f"{slide_size.w} × {slide_size.h} px at level 0; pass another --region"
        )
    scale = Fraction(view.scale)
    low = (math.floor(box.y0 / scale), math.floor(box.x0 / scale))
    return Box(*low, math.ceil(box.y1 / scale), math.ceil(box.x1 / scale)) & Box.of(view.size)


def _magnification(slide: Slide, view: View) -> float | None:
    """Magnification for viewers: that of the slide, scaled, unless it contradicts µm/px (10× is 1 µm/px)."""
    own = None if slide.magnification is None else float(slide.magnification / view.scale)
    if view.mpp is None:
        return own
    usual = 10 / view.mpp
    if own is not None and abs(own / usual - 1) < 0.2:
        return round(own, 2)
    steps = (1.25, 2.5, 5, 10, 20, 40, 60, 80, 100)
    nearest = min(steps, key=lambda step: abs(step / usual - 1))
    return nearest if abs(nearest / usual - 1) < 0.1 else round(usual, 2)


def _job(request: ConvertRequest, bundle: Bundle, view: View, region: Box, print_: Mapping[str, Any]) -> Job:
    output = _shared(request, request.output or Path(f"{request.slide.stem}.{bundle.stain_slug}.ome.tiff"))
    kind = ENDINGS[_ending(output)]
    check_name(output)
    if output.exists() and output.is_dir() != (kind == "zarr"):
        raise OutputError(
            f"{output} is a {'folder' if output.is_dir() else 'file'}, but the output would be a "
            f"{'folder' if kind == 'zarr' else 'file'}; choose another name with -o, or remove it first"
        )
    config = request.config
    canvas = CanvasSpec(
        output=output,
        size=region.size,
        block=config.grid.block,
        glass=bundle.glass,
        encoding=config.output,
        mpp=None if view.mpp is None else float(view.mpp),
        provenance=tuple(provenance.provenance(print_, bundle.stain).items()),
    )
    return Job(
        slide=_shared(request, request.slide),
        slide_mpp=request.mpp,
        view_mpp=bundle.mpp,
        allow_upsampling=request.allow_upsampling,
        model=str(_shared(request, Path(request.model)) if Path(request.model).is_dir() else request.model),
        device=request.device,
        precision=print_["precision"],
        tile=print_["tile"],
        overlap=print_["overlap"],
        region=region,
        batch=config.batch,
        cache_mb=config.cache_mb,
        canvas=canvas,
        kind=kind,
        mask=None if request.mask == "none" else canvas.spool / "tissue.npz",
    )


def _shared(request: ConvertRequest, path: Path) -> Path:
    """The path as workers see it: cluster workers have another working directory, so they need an absolute path."""
    return path if request.scheduler is None else path.absolute()


def _todo(job: Job, blocks: tuple[Block, ...], print_: Mapping[str, Any], *, restart: bool) -> tuple[Block, ...]:
    canvas = job.open_canvas()
    if restart or canvas.store.fingerprint != json.loads(json.dumps(print_)):
        return blocks
    return tuple(canvas.todo(blocks))
