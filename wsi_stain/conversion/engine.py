"""Converts one slide: `convert()` runs all steps from a request to a finished output.

    plan → canvas.begin → todo → workers.map(stain_block) → canvas.finish
         → ometiff.write(.part) → problems() → rename → record

After an interruption at any point, the same call resumes and produces the same bytes.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from wsi_stain.cluster.workers import Workers, choose
from wsi_stain.config.loader import dump
from wsi_stain.conversion import seams
from wsi_stain.conversion.certificate import certify
from wsi_stain.conversion.job import BlockReport, save_mask
from wsi_stain.conversion.painter import measure_statistics, painter, release, stain_block
from wsi_stain.conversion.plan import Plan, check_room, plan
from wsi_stain.conversion.provenance import is_done
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.resources import gib
from wsi_stain.conversion.timing import Usage
from wsi_stain.errors import NoRoom, OutputError
from wsi_stain.files import record
from wsi_stain.files.lock import locked
from wsi_stain.geometry import Box
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import Canvas, beside
from wsi_stain.output.tiff_canvas import TileSpool
from wsi_stain.output.zarr_canvas import ZarrCanvas
from wsi_stain.slide.files import stamp
from wsi_stain.tiling.grid import TileGrid, painting_order
from wsi_stain.tissue.mask import to_geojson

__all__ = ["ConvertRequest", "Plan", "Progress", "Result", "convert", "plan"]

log = logging.getLogger(__name__)

NORM_WORDS = {
    "slide": "the network normalizes each tile by its own statistics, which draws seams; they are measured once on "
    "sample tiles of the slide and frozen (--norm tile disables this)",
    "tile": "the network normalizes each tile by its own statistics (--norm tile); expect seams",
}

Stage = Literal["plan", "stain", "assemble", "check", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a conversion, as an event for a display."""

    stage: Stage
    done_blocks: int = 0
    """Painted blocks, including those of earlier runs."""
    blocks: int = 0
    done_tiles: int = 0
    """Tissue tiles of the blocks painted in this run."""
    tiles: int = 0
    """Tissue tiles to stain in this run."""
    seconds: float = 0.0
    """Time since this run started."""
    busy: Mapping[str, float] = field(default_factory=dict)
    """Thread-seconds in the stages read, wait (for the device), generate, blend and write so far."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """The same as shares of the threads' time, 0–1."""
    device_busy: float = 0.0
    """Share of the time in which the device worked, 0–1; near 1 the device limits the speed, else the largest stage."""


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a conversion."""

    output: Path
    already_done: bool
    record: dict[str, Any]
    """Content of `<output>.run.json`."""
    unreadable: tuple[Box, ...] = ()
    """Tiles of the source that could not be read and were filled with background, in the output's px."""


def convert(request: ConvertRequest, progress: Callable[[Progress], None] | None = None) -> Result:
    """Stain a slide; resumes an unfinished run of the same request.

    Args:
        request: what to do.
        progress: called with an event after every block and at every stage.

    Raises:
        WsiStainError: the conversion failed; finished blocks are kept, and the same call resumes.
    """
    on_progress = progress or (lambda _: None)
    on_progress(Progress("plan"))
    workers = choose(request.workers, request.scheduler)
    before = stamp(request.slide)
    conversion_plan = plan(request)
    run, canvas = _Run(conversion_plan, workers, on_progress, before), conversion_plan.job.open_canvas()
    with _disk_full(conversion_plan), _folder_of(canvas), locked(canvas.store.folder / "lock"):
        # Checked again: another run may have finished it between the plan and the lock.
        if is_done(conversion_plan.job.canvas, conversion_plan.fingerprint, restart=request.restart):
            canvas.store.remove()  # left by a run killed after writing its record
            return Result(conversion_plan.output, True, record.read(record.path_of(conversion_plan.output)))
        check_room(conversion_plan)
        return run.complete(canvas)


class _Run:
    """One call of `convert`: clock, counters and steps."""

    def __init__(
        self, conversion_plan: Plan, workers: Workers, on_progress: Callable[[Progress], None], source_stamp: str
    ) -> None:
        self._source_stamp = source_stamp
        self.plan, self._workers, self._on_progress = conversion_plan, workers, on_progress
        self._start, self._started = time.perf_counter(), datetime.now(UTC)
        self._usage, self._staining_since = Usage(), self._start
        self._stages: dict[str, float] = {"stain": 0.0}
        self._generated = self._repeats = self._painted = 0
        self._device = conversion_plan.job.device

    def complete(self, canvas: Canvas) -> Result:
        """All steps after the plan; the caller holds the lock."""
        canvas.begin(self.plan.fingerprint, self.plan.request.restart)
        if self.plan.request.restart:
            # If this run is killed and repeated without --restart, the old output must not count as finished.
            record.path_of(self.plan.output).unlink(missing_ok=True)
        self._write_mask(canvas)
        unreadable = self._paint(canvas)
        with self._stage("certify"):
            certificate = self._certify(canvas)
        facts = {} if certificate is None else seams.in_words(certificate)
        with self._stage("assemble"):
            if isinstance(canvas, ZarrCanvas):
                canvas.annotate(facts)
            canvas.finish()
            if isinstance(canvas, TileSpool):
                self._assemble(canvas, unreadable, facts)
        content = self._record(canvas, unreadable) | {"seams": certificate}
        record.write(record.path_of(self.plan.output), content)
        canvas.store.remove()
        self._report("done", len(self.plan.blocks), 0)
        return Result(self.plan.output, False, content, unreadable)

    def _paint(self, canvas: Canvas) -> tuple[Box, ...]:
        """Paint the missing blocks; return the tiles that could not be read, in the output's px."""
        job, blocks = self.plan.job, self.plan.blocks
        todo = canvas.todo(blocks)  # checked again: another run may have held the lock since the plan
        self._painted = len(todo)
        unreadable = _unreadable(canvas)
        self._check_unreadable(unreadable)
        done, tiles = len(blocks) - len(todo), 0
        self._report("stain", done, tiles)
        if not todo:
            return self._in_output(unreadable)
        with self._workers as workers, ExitStack() as last:
            last.callback(release, job)  # runs before the threads are joined, and ends their work
            self._measure_statistics(workers)
            self._load()
            with self._stage("stain"):
                self._staining_since = time.perf_counter()
                for report in workers.map(partial(stain_block, job), painting_order(todo)):
                    done, tiles = done + 1, tiles + report.tissue
                    unreadable.update(report.unreadable)
                    self._count(report)
                    self._check_unreadable(unreadable)
                    self._report("stain", done, tiles)
        return self._in_output(unreadable)

    def _load(self) -> None:
        """Open slide and generator before the stages are timed; cluster workers open them with their first block."""
        with self._stage("load"):
            if self.plan.request.scheduler is None:
                self._device = painter(self.plan.job).device

    def _measure_statistics(self, workers: Workers) -> None:
        """Measure the statistics of the slide before the first block, if the network has no frozen ones."""
        job = self.plan.job
        if self.plan.fingerprint["norm"] != "frozen":
            log.warning("%s: %s", self.plan.fingerprint["model"], NORM_WORDS[self.plan.fingerprint["norm"]])
        if job.statistics is not None and not job.statistics.exists():
            for _ in workers.map(measure_statistics, [job]):
                pass

    def _certify(self, canvas: Canvas) -> dict[str, Any] | None:
        """The seam certificate of the painted canvas; None if it is disabled."""
        conversion_plan, job = self.plan, self.plan.job
        if not conversion_plan.request.config.certificate:
            return None
        if conversion_plan.certificate is not None:
            return dump(conversion_plan.certificate)
        grid = TileGrid(conversion_plan.view_size, job.tile, job.overlap)
        return dump(certify(canvas, job, grid, conversion_plan.lines, conversion_plan.promise))

    def _assemble(self, canvas: TileSpool, unreadable: tuple[Box, ...], facts: dict[str, str]) -> None:
        """Write the OME-TIFF under its temporary name, check it, then rename it."""
        conversion_plan, part = self.plan, self.plan.job.canvas.part
        self._report("assemble", len(conversion_plan.blocks), 0)
        metadata = ometiff.OmeMetadata(
            name=conversion_plan.output.name,
            mpp=conversion_plan.job.canvas.mpp,
            magnification=conversion_plan.magnification,
            stain=conversion_plan.stain,
            annotations={k: v for k, v in conversion_plan.job.canvas.provenance if k not in ("notice", "use")} | facts,
            rois=tuple(ometiff.Roi("unreadable in the source", box) for box in unreadable),
            uuid=str(
                uuid.uuid5(uuid.NAMESPACE_URL, "wsi-stain:" + json.dumps(conversion_plan.fingerprint, sort_keys=True))
            ),
        )
        ometiff.write(part, canvas, metadata, compat_openslide=conversion_plan.request.config.output.compat_openslide)
        with self._stage("check"):
            self._report("check", len(conversion_plan.blocks), 0)
            errors = [p for p in ometiff.problems(part, name=conversion_plan.output.name) if p.severity == "error"]
        if errors:
            message = "; ".join(f"rule {p.rule}: {p.message}" for p in errors)
            raise OutputError(f"{part} was written but fails its check ({message}); please report this")
        with part.open("rb") as file:
            os.fsync(file.fileno())  # the blocks are deleted next: a power failure must not lose both
        part.replace(conversion_plan.output)

    def _write_mask(self, canvas: Canvas) -> None:
        """Write the mask to the canvas folder for the workers, and next to the output for users."""
        if self.plan.job.mask is not None:
            buffer = io.BytesIO()
            save_mask(self.plan.mask, buffer)
            canvas.store.write(self.plan.job.mask.name, buffer.getvalue())
        if self.plan.mask_path is not None:
            part = beside(self.plan.mask_path, ".part")
            to_geojson(self.plan.mask, part)
            part.replace(self.plan.mask_path)

    def _check_unreadable(self, unreadable: set[Box]) -> None:
        share = len(unreadable) / max(1, self.plan.tissue_tiles)
        allowed = self.plan.request.config.max_unreadable
        if unreadable and share > allowed:
            raise OutputError(
                f"{self.plan.job.slide} is damaged: {len(unreadable)} of {self.plan.tissue_tiles} tiles with tissue "
                f"({share:.1%}) cannot be read, but only {allowed:.1%} are allowed; copy the slide again from its "
                "source, or allow more, for example --set max_unreadable=0.1"
            )

    def _in_output(self, boxes: set[Box]) -> tuple[Box, ...]:
        """Tiles of the view as boxes of the output, clipped, sorted."""
        region = self.plan.job.region
        return tuple(sorted((box & region).shift(-region.y0, -region.x0) for box in boxes))

    def _count(self, report: BlockReport) -> None:
        self._generated += report.generated
        self._repeats += report.again
        self._usage.add(report.seconds, report.where)

    def _report(self, stage: Stage, done_blocks: int, done_tiles: int) -> None:
        blocks, tiles = len(self.plan.blocks), self.plan.tissue_tiles_todo
        now = time.perf_counter()
        wall, usage = now - self._staining_since, self._usage
        shares, device = usage.shares(wall), usage.device_busy(wall)
        seconds = dict(usage.seconds)
        self._on_progress(
            Progress(stage, done_blocks, blocks, done_tiles, tiles, now - self._start, seconds, shares, device)
        )

    @contextmanager
    def _stage(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self._stages[name] = time.perf_counter() - start

    def _record(self, canvas: Canvas, unreadable: tuple[Box, ...]) -> dict[str, Any]:
        conversion_plan, request = self.plan, self.plan.request
        seconds = time.perf_counter() - self._start
        stain, usage = self._stages["stain"], self._usage
        return {
            "notice": ometiff.NOTICE,
            "output": conversion_plan.output.name,
            "fingerprint": conversion_plan.fingerprint,
            "source_stamp": self._source_stamp,
            "arguments": _arguments(request),
            "config": dump(request.config),
            "versions": record.versions(),
            "device": self._device,
            "tiles": {
                "all": conversion_plan.tiles,
                "tissue": conversion_plan.tissue_tiles,
                "generated_in_this_run": self._generated,
                "stained_again_in_this_run": self._repeats,
            },
            "blocks": {"all": len(conversion_plan.blocks), "painted_in_this_run": self._painted},
            "unreadable": [list(box) for box in unreadable],
            "size_px": list(conversion_plan.job.region.size),
            "seconds": {"all": seconds, **self._stages, "threads": usage.seconds},
            "threads": len(usage.threads),
            "shares": usage.shares(stain),
            "device_busy": usage.device_busy(stain),
            "tiles_per_s": self._generated / stain if stain else 0.0,
            "peak_memory_bytes": record.peak_memory_bytes(),
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _unreadable(canvas: Canvas) -> set[Box]:
    """Unreadable tiles that the painted blocks recorded, as boxes of the view."""
    return {Box(*box) for notes in canvas.store.notes() for box in notes["unreadable"]}


def _arguments(request: ConvertRequest) -> dict[str, Any]:
    """The request as the user passed it, without the configuration."""
    return {key: value for key, value in dump(request).items() if key != "config"}


@contextmanager
def _folder_of(canvas: Canvas) -> Generator[None]:
    """Create the canvas folder; remove it on exit if it is empty."""
    folder = canvas.store.folder
    try:
        folder.mkdir(exist_ok=True)
    except OSError as err:
        raise OutputError(f"{folder} cannot be created: {err.strerror}; choose another output with -o") from err
    try:
        yield
    finally:
        with suppress(OSError):  # it holds blocks, or is already removed
            folder.rmdir()


@contextmanager
def _disk_full(conversion_plan: Plan) -> Generator[None]:
    """Replace the system error of a full disk with `NoRoom`."""
    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(conversion_plan.output.parent).free
        raise NoRoom(
            f"the disk of {conversion_plan.output} is full: about {gib(conversion_plan.disk_bytes)} were needed when "
            f"this run started, but only {gib(free)} are free now; free some space and re-run the same command "
            "to resume"
        ) from err
