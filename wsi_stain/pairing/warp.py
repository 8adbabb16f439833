"""Writes the other slide of a case in the frame of its H&E: a pyramidal OME-TIFF that opens beside it.

The canvas and the writer are those of a conversion: blocks as tasks, in bounded memory; the same call resumes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsi_stain import __version__
from wsi_stain.cluster.workers import Workers
from wsi_stain.config.convert import OutputConfig
from wsi_stain.config.ranges import Mpp, check_ranges
from wsi_stain.errors import OutputError, SlideError, UnreadableRegion
from wsi_stain.files.full_disk import reporting_full_disk
from wsi_stain.files.lock import locked
from wsi_stain.files.notice import RESAMPLED
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import Background
from wsi_stain.output.canvas import CanvasSpec
from wsi_stain.output.tiff_canvas import TiffCanvas
from wsi_stain.pairing.case import Case, open_case
from wsi_stain.pairing.resample import PART_PX, Warped, parts
from wsi_stain.registration.images import background_in
from wsi_stain.slide.slide import MAX_GROWTH
from wsi_stain.tiling.grid import Block, TileGrid

BLOCK_PX = 2048
"""Side of a block: 512 times a power of two."""
STAIN = "IHC"
"""What the metadata calls the stain: its name is not known, and texts of the slide are not copied."""


@dataclass(frozen=True, slots=True)
class WarpRequest:
    """A request for a warped slide; the fields are the flags of `wsi-stain pairs warp`."""

    case: Path
    """Folder of a finished case."""
    output: Path
    """`x.ome.tiff`; it must not exist."""
    he: Path | None = None
    """The H&E slide, if it is not where it was."""
    ihc: Path | None = None
    """The other slide, likewise."""
    mpp: Mpp | None = None
    """µm per px of the output; None is that of the case's tiles."""
    encoding: OutputConfig = field(default_factory=OutputConfig)
    workers: int | None = None
    """Number of threads; 0 uses the calling thread, None one per processor."""

    def __post_init__(self) -> None:
        check_ranges(self)


def warp(request: WarpRequest, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write the other slide of a case in the frame of its H&E, or finish a run that was stopped.

    Args:
        request: what to write.
        progress: called with the number of blocks done and the total.

    Raises:
        OutputError: the output exists or cannot be written, or the case is unfinished or refused.
        SlideError: a slide is missing, changed, or coarser than the output.
    """
    _check_output(request.output)
    with open_case(request.case, he=request.he, ihc=request.ihc) as case:
        mpp = request.mpp or case.mpp
        if case.ihc.mpp > mpp * MAX_GROWTH:
            raise SlideError(
                f"{case.ihc.path.name} has {case.ihc.mpp:g} µm/px, coarser than {mpp:g}; pass --mpp {case.ihc.mpp:g} "
                "or more"
            )
        size = case.he.at(mpp, allow_upsampling=True).size
        background = background_in(case.ihc.thumbnail(1024))
        warped = Warped(case.ihc.at(mpp), case.transform, mpp)
        fingerprint = _fingerprint(request, case, mpp, size, background)
        canvas = TiffCanvas(_spec(request, case, fingerprint))
        _run(canvas, warped, request, fingerprint, progress)


def _check_output(output: Path) -> None:
    if not output.name.endswith((".ome.tiff", ".ome.tif")):
        raise OutputError(f"{output} does not end in .ome.tiff; choose such a name with -o")
    if output.exists():
        raise OutputError(f"{output} exists; choose another name with -o, or remove it first")


def _fingerprint(request: WarpRequest, case: Case, mpp: float, size: Size, background: Background) -> dict[str, Any]:
    """Everything that can change a byte of the output."""
    return {
        "wsi_stain": __version__,
        "case": case.name,
        "source_sha256": case.hashes["ihc"],
        "frame_sha256": case.hashes["he"],
        "registration_sha256": case.hashes["registration"],
        "mpp": mpp,
        "size": list(size),
        "block": BLOCK_PX,
        "background": list(background),
        "output": asdict(request.encoding),
    }


def _spec(request: WarpRequest, case: Case, fingerprint: dict[str, Any]) -> CanvasSpec:
    mpp, facts = fingerprint["mpp"], ("case", "source_sha256", "frame_sha256", "registration_sha256", "mpp")
    recorded = {key: str(fingerprint[key]) for key in facts} | {"verdict": case.verdict}
    return CanvasSpec(
        request.output,
        Size(*fingerprint["size"]),
        BLOCK_PX,
        tuple(fingerprint["background"]),
        request.encoding,
        mpp,
        tuple({"notice": RESAMPLED, **recorded, "software": f"wsi-stain {__version__}"}.items()),
        round(10 / mpp, 2),  # 10× is 1 µm/px
        STAIN,
        str(uuid.uuid5(uuid.NAMESPACE_URL, "wsi-stain:" + json.dumps(fingerprint, sort_keys=True))),
    )


def _run(
    canvas: TiffCanvas,
    warped: Warped,
    request: WarpRequest,
    fingerprint: dict[str, Any],
    progress: Callable[[int, int], None],
) -> None:
    """Paint the missing blocks, and publish the output."""
    folder = canvas.store.folder
    blocks = TileGrid(canvas.sizes[0], BLOCK_PX, 0, block=BLOCK_PX).blocks()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as err:
        raise OutputError(f"{folder} cannot be created: {err.strerror}; choose another output with -o") from err
    with reporting_full_disk(request.output), locked(folder / "lock"):
        canvas.begin(fingerprint)
        todo = canvas.todo(blocks)
        done = len(blocks) - len(todo)
        progress(done, len(blocks))

        def count(_: object) -> None:
            nonlocal done
            done += 1
            progress(done, len(blocks))

        with Workers(request.workers) as workers:
            work = partial(_paint, canvas, warped)
            work.__name__ = "warp"  # type: ignore[attr-defined]  # Dask names its tasks by it
            workers.run(work, todo, count)
        _check_output(request.output)  # it may have appeared meanwhile
        canvas.publish({}, [Box(*box) for notes in canvas.store.notes() for box in notes["unreadable"]])
        canvas.store.remove()


def _paint(canvas: TiffCanvas, warped: Warped, block: Block) -> None:
    cv2.setNumThreads(1)  # blocks run in parallel
    box = block.write
    pixels = np.empty((*box.size, 3), np.uint8)
    pixels[:] = canvas.store.background
    unreadable, is_empty = list[Box](), True
    for part in parts(box, PART_PX):
        try:
            image, inside = warped.read(part)
        except UnreadableRegion:
            unreadable.append(part)
            continue
        is_empty &= not inside.any()
        pixels[part.shift(-box.y0, -box.x0).slices()][inside] = image[inside]
    canvas.put(block, None if is_empty else pixels, {"unreadable": unreadable})
