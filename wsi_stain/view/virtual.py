"""`virtual_slide()`: a virtual stain that is computed where it is read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from wsi_stain.conversion.engine import ConversionResult, convert
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import BundleError, OutputError, SlideError
from wsi_stain.geometry import Box
from wsi_stain.model.bundle import DEFAULT
from wsi_stain.output.pyramid import level_sizes
from wsi_stain.slide.slide import Level, Slide, View
from wsi_stain.view.painting import Painting
from wsi_stain.view.shown import Shown

if TYPE_CHECKING:
    from dask.array import Array
    from zarr.abc.store import Store


def virtual_slide(
    slide: Path | str,
    *,
    model: str | Path = DEFAULT,
    device: str = "auto",
    output: Path | str | None = None,
    **settings: Any,
) -> VirtualSlide:
    """A virtual stain of a slide that is computed where it is read, and only there.

    Args:
        slide: the H&E slide.
        model: name or folder of a bundle.
        device: auto, cpu, cuda or cuda:N.
        output: the file that `save` writes; what is read is kept beside it, in `<output>.spool`. By default
            `<slide>.<stain>.ome.tiff` in the working directory, as for `convert`.
        settings: any other field of `ConvertRequest`, for example `mpp` or `region`.

    Raises:
        WsiStainError: the slide, the model or the output cannot be used.

    Examples:
        >>> with virtual_slide("slide.svs") as virtual:                  # doctest: +SKIP
        ...     gland = virtual.read(0, Box(5000, 8000, 6000, 9000))      # stains one to four blocks
        ...     virtual.save()                                            # stains the rest
    """
    path = None if output is None else Path(output)
    return VirtualSlide(ConvertRequest(Path(slide), path, model=model, device=device, **settings))


class VirtualSlide:
    """A virtual stain, computed where it is read, in the same canvas as `convert` paints; a context manager.

    A block is stained once, ever: what was read is part of the output that `save`, or `wsi-stain convert` with the same
    settings, completes. Coarse levels are reduced from painted blocks. Reading is thread-safe. While it is open it
    holds the lock of the output, as a conversion does. If another process holds the lock, `blocked` gives the reason,
    and only what is painted can be read.

    Boxes and levels are in the output's frame: the converted region at the model's µm/px.
    """

    def __init__(self, request: ConvertRequest) -> None:
        self._open(request)

    def _open(self, request: ConvertRequest) -> None:
        self._request = request
        self._painting = Painting(request)
        if self._painting.job.canvas.channels:
            self._painting.close()
            raise BundleError(
                f"{request.model} makes fluorescence channels, and a virtual slide has colours only; use convert()"
            )
        try:
            self._slide = self._painting.job.view.open().slide
        except BaseException:
            self._painting.close()
            raise
        self._shown = Shown(self._painting, self._slide)
        self._finished: Slide | None = Slide.open(self.output) if self._painting.is_done else None

    @property
    def output(self) -> Path:
        """The file that `save` writes."""
        return self._painting.job.output

    @property
    def blocked(self) -> str:
        """Why nothing more can be stained: another process works on the same output; empty otherwise."""
        return self._painting.blocked

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the output, finest first; each is half as large as the one before."""
        sizes = level_sizes(self._painting.job.canvas.size)
        return tuple(Level(size, Fraction(1 << n)) for n, size in enumerate(sizes))

    @property
    def mpp(self) -> float | None:
        """µm per px of level 0; None if the slide has no pixel size and the model works at level 0."""
        return self._painting.survey.view_mpp

    @property
    def stain(self) -> str:
        """The stain that the model makes, for example CAM5.2."""
        return self._painting.survey.bundle.stain

    @property
    def share_painted(self) -> float:
        """Share of the blocks that are painted, 0–1."""
        return 1.0 if self._finished else len(self._painting.painted) / len(self._painting.blocks)

    def read(self, level: int, box: Box) -> np.ndarray:
        """Pixels of a level, uint8 (h, w, 3) sRGB; stains the blocks under the box that are not painted yet.

        At a coarse level many blocks lie under a box: reading the whole coarsest level stains the whole slide.

        Raises:
            SlideError: there is no such level, or the box is not inside it.
            InUse: part of the box is not painted, and another process paints this output.
        """
        if not 0 <= level < len(self.levels):
            raise SlideError(f"there is no level {level}; the virtual slide has levels 0 to {len(self.levels) - 1}")
        size = self.levels[level].size
        if not (box.area and Box.of(size).contains(box)):
            raise SlideError(f"{box} is not inside level {level}, which has {size.w} × {size.h} px; pass a smaller box")
        if (finished := self._from_file(level)) is not None:
            return finished.read(box)
        self._painting.ensure(block.index for block in self._painting.touching(box.scaled(1 << level)))
        return self._shown.read(level, box)

    def preview(self, level: int, box: Box) -> np.ndarray:
        """A box of a level, uint8 (h, w, 3) sRGB: what is painted, over a pale H&E; stains nothing."""
        finished = self._from_file(level)
        return self._shown.over_pale(level, box) if finished is None else finished.read(box)

    def thumbnail(self, longest: int = 512) -> np.ndarray:
        """The whole slide, its longer side at most `longest` px: what is painted, over a pale H&E; stains nothing.

        Returns:
            uint8 (h, w, 3), sRGB
        """
        sizes = [level.size for level in self.levels]
        level = max((n for n, size in enumerate(sizes) if max(size) >= longest), default=0)
        box = Box.of(sizes[level])
        pixels = self.preview(level, box)
        factor = min(1.0, longest / max(box.size))
        h, w = (max(1, round(n * factor)) for n in box.size)
        return cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)

    def dask(self) -> list[Array]:
        """Dask arrays of all levels, finest first: uint8 (h, w, 3), one chunk per block; computing a chunk stains it.

        The graphs are small whatever the size of the slide. Compute them on threads of this process: it holds the lock.
        """
        from wsi_stain.view.arrays import arrays

        return arrays(self, self._painting.job.grid.block)

    def store(self) -> Store:
        """A read-only Zarr 3 store with OME-Zarr 0.5 metadata (axes c, y, x); reading a chunk stains its block.

        Examples:
            >>> zarr.open_group(virtual.store(), mode="r")["0"][:, :512, :512]   # doctest: +SKIP
        """
        from wsi_stain.view.zarr_store import VirtualStore

        return VirtualStore(self, self._painting.job.canvas)

    def save(self, output: Path | str | None = None, **options: Any) -> ConversionResult:
        """Stain what is missing and write the output, as `convert` does; the virtual slide then reads from it.

        Args:
            output: another name for the output, of the same format.
            options: arguments of `convert`, for example `progress`.

        Raises:
            WsiStainError: the conversion failed; finished blocks are kept.
        """
        target = self._painting.job if output is None else self._job_of(Path(output))
        request = replace(self._request, output=target.output, restart=False)
        spool = self._painting.job.canvas.spool
        self.close()
        try:
            if spool != target.canvas.spool and spool.exists():
                shutil.move(spool, target.canvas.spool)
            return convert(request, **options)
        finally:
            self._open(request)

    def close(self) -> None:
        """Stop staining and give the lock back; what was painted stays for `convert`."""
        self._painting.close()
        self._slide.close()
        if self._finished is not None:
            self._finished.close()

    def __enter__(self) -> VirtualSlide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _from_file(self, level: int) -> View | None:
        """A level of the finished output; None if it is not finished."""
        if self._finished is None:
            if not self._painting.is_finished_elsewhere():
                return None
            self._finished = Slide.open(self.output)
        at = self._finished.levels[level]
        return View(self._finished, at.size, None, at.downsample)

    def _job_of(self, output: Path) -> Job:
        """The job of the same request with another name for its output."""
        ours = self._painting.job
        job = Job.of(replace(self._painting.survey, request=replace(self._request, output=output)))
        if job.output.resolve() == ours.output.resolve():
            return ours
        if job.kind != ours.kind or job.kind == "zarr" or self._finished is not None:
            raise OutputError(
                f"this virtual slide is kept as {ours.output}, which cannot become {output}; call save() without a "
                f"name, or open the slide with virtual_slide(…, output={str(output)!r})"
            )
        if job.output.exists() or job.canvas.spool.exists():
            raise OutputError(f"{output}, or an unfinished run of it, already exists; choose another name")
        return job
