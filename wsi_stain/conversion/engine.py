"""Converts one slide: `convert()` runs all steps from a request to a finished output.

    Survey.of(request)     what the slide, the model and the mask give; only looks
    Job.of(survey)         everything that travels to the workers
    Estimate.of(job)       what is left to do, and the disk and memory that it takes
    check_input            compare tiles with the model's training slides
    begin                  start, or resume
    stain_block            one Dask task for each missing block
    certify                examine the canvas for seams
    canvas.publish         write the output, check it, give it its final name
    record                 versions, settings, hashes, timings

After an interruption at any point, the same call resumes and produces the same bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from wsi_stain.cluster import ClusterConfig, open_cluster
from wsi_stain.cluster.workers import Workers
from wsi_stain.config.loader import dump, load
from wsi_stain.conversion.begin import begin
from wsi_stain.conversion.certificate import in_words
from wsi_stain.conversion.certify import certify
from wsi_stain.conversion.estimate import Estimate, check_resources
from wsi_stain.conversion.input_check import check_input, facts_of
from wsi_stain.conversion.job import BlockReport, Job, mask_beside
from wsi_stain.conversion.painter import measure_statistics, painter, release, stain_block
from wsi_stain.conversion.progress import Progress, Stage
from wsi_stain.conversion.provenance import is_done
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.source import SourceChanged, check_unchanged
from wsi_stain.conversion.survey import Survey
from wsi_stain.conversion.timing import Usage
from wsi_stain.errors import OutputError
from wsi_stain.files import record
from wsi_stain.files.full_disk import reporting_full_disk
from wsi_stain.files.lock import locked
from wsi_stain.files.paths import without_home
from wsi_stain.geometry import Box
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import Canvas
from wsi_stain.tiling.grid import Block, painting_order
from wsi_stain.tissue.mask import to_geojson
from wsi_stain.trust.verdict import InputVerdict

__all__ = ["ConversionResult", "ConvertRequest", "Progress", "convert"]

log = logging.getLogger(__name__)

NORM_WORDS = {
    "slide": "the network normalizes each tile by its own statistics, which draws seams; they are measured once on "
    "sample tiles of the slide and frozen (--norm tile disables this)",
    "tile": "the network normalizes each tile by its own statistics (--norm tile); expect seams",
}


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """Result of a conversion."""

    output: Path
    already_done: bool
    record: dict[str, Any]
    """Content of `<output>.run.json`."""
    unreadable: tuple[Box, ...] = ()
    """Tiles that could not be read and were filled with background, in the output's frame."""


def convert(
    request: ConvertRequest, progress: Callable[[Progress], None] | None = None, *, survey: Survey | None = None
) -> ConversionResult:
    """Stain a slide; resumes an unfinished run of the same request.

    Args:
        request: what to do.
        progress: called with an event after every block and at every stage.
        survey: of the same request, if it was made before.

    Raises:
        WsiStainError: the conversion failed; finished blocks are kept, and the same call resumes.
    """
    if request.cluster is not None:
        with open_cluster(load(ClusterConfig, request.cluster)) as client:
            scheduler: Any = client.scheduler  # declared as optional
            return convert(replace(request, cluster=None, scheduler=scheduler.address), progress)
    on_progress = progress or (lambda _: None)
    on_progress(Progress("plan"))
    workers = Workers(request.workers, request.scheduler)
    survey = survey or Survey.of(request)
    job = Job.of(survey)
    estimate = Estimate.of(survey, job)
    run, canvas = _Run(survey, job, estimate, on_progress), job.open_canvas()
    full = reporting_full_disk(job.output, estimate.disk_bytes)
    with full, _folder_of(canvas), locked(canvas.store.folder / "lock"):
        # Checked again: another run may have finished it between the estimate and the lock.
        if is_done(job.canvas, job.fingerprint, job.grid.region, restart=request.restart):
            canvas.store.remove()  # left by a run killed after writing its record
            return ConversionResult(job.output, True, record.read(record.path_of(job.output)))
        check_resources(estimate)
        run.verdict = check_input(survey)
        run.begin(canvas)
        unreadable = run.paint(canvas, workers)
        certificate = run.certify(canvas)
        run.publish(canvas, unreadable, certificate)
        content = run.record(unreadable, certificate)
        canvas.store.remove()
        run.report("done")
    return ConversionResult(job.output, False, content, unreadable)


class _Run:
    """One call of `convert`: its steps, with their clock and counters."""

    def __init__(self, survey: Survey, job: Job, estimate: Estimate, on_progress: Callable[[Progress], None]) -> None:
        self._survey, self._job, self._estimate, self._on_progress = survey, job, estimate, on_progress
        self._request = survey.request
        self._start, self._started = time.perf_counter(), datetime.now(UTC)
        self._usage, self._staining_since = Usage(), self._start
        self._stages: dict[str, float] = {"stain": 0.0}
        self._done_blocks = self._done_tiles = self._generated = self._repeats = self._painted = 0
        self._device = job.device
        self.verdict: InputVerdict | None = None

    def begin(self, canvas: Canvas) -> None:
        """Start or resume; write the mask next to the output for users."""
        self._versions = begin(self._survey, self._job, canvas)
        if (path := mask_beside(self._survey, self._job.output)) is not None:
            to_geojson(self._survey.mask, path)

    def paint(self, canvas: Canvas, workers: Workers) -> tuple[Box, ...]:
        """Paint the missing blocks; return the tiles that could not be read, in the output's frame."""
        blocks = self._survey.blocks
        todo = canvas.todo(blocks)  # checked again: another run may have held the lock since the estimate
        for block in todo:
            canvas.store.discard(block.index)  # a damaged file must not be taken for a painted block
        self._painted = len(todo)
        unreadable = _unreadable(canvas)
        self._check_unreadable(unreadable)
        self._done_blocks = len(blocks) - len(todo)
        self.report("stain")
        if not todo:
            return self._in_output(unreadable)
        try:
            self._paint(todo, unreadable, workers)
            self._check_source(unreadable)
        except SourceChanged:  # no thread paints any more
            canvas.store.remove()
            raise
        return self._in_output(unreadable)

    def _paint(self, todo: list[Block], unreadable: set[Box], workers: Workers) -> None:
        """Paint blocks; adds the tiles that cannot be read."""
        with workers, ExitStack() as last:
            last.callback(release, self._job)  # runs before the threads are joined, and ends their work
            self._measure_statistics(workers)
            self._load()

            def on_report(block: BlockReport) -> None:
                unreadable.update(block.unreadable)
                self._count(block)
                self._check_unreadable(unreadable)
                self.report("stain")

            with self._stage("stain"):
                self._staining_since = time.perf_counter()
                workers.run(partial(stain_block, self._job), painting_order(todo), on_report)

    def certify(self, canvas: Canvas) -> dict[str, Any] | None:
        """The seam certificate of the painted canvas; None if it is disabled."""
        with self._stage("certify"):
            certificate = certify(canvas, self._survey, self._job.seed)
            return None if certificate is None else dump(certificate)

    def publish(self, canvas: Canvas, unreadable: tuple[Box, ...], certificate: dict[str, Any] | None) -> None:
        """Make the output from the canvas, and time its check."""
        self.report("assemble")
        with self._stage("assemble"), ExitStack() as check:

            def on_check() -> None:
                self.report("check")
                check.enter_context(self._stage("check"))

            facts = ({} if certificate is None else in_words(certificate)) | facts_of(self.verdict)
            canvas.publish(facts, unreadable, on_check)

    def _load(self) -> None:
        """Open slide and generator before the stages are timed; cluster workers open them with their first block."""
        with self._stage("load"):
            if self._request.scheduler is None:
                self._device = painter(self._job).device

    def _measure_statistics(self, workers: Workers) -> None:
        """Measure the statistics of the slide before the first block, if the network has no frozen ones."""
        job, norm = self._job, self._survey.norm
        if norm != "frozen":
            log.warning("%s: %s", self._survey.bundle.name, NORM_WORDS[norm])
        if job.statistics is not None and not job.statistics.exists():
            workers.run(measure_statistics, [job], lambda _: None)

    def _check_source(self, unreadable: set[Box]) -> None:
        """Refuse a slide that was replaced or removed while it was read, which an open file can hide."""
        survey = self._survey
        check_unchanged(survey.request.slide, survey.source_stamp, survey.source_sha256, is_read=not unreadable)

    def _check_unreadable(self, unreadable: set[Box]) -> None:
        total, allowed = self._survey.tissue_tiles, self._request.config.max_unreadable
        share = len(unreadable) / max(1, total)
        if unreadable and share > allowed:
            self._check_source(unreadable)
            raise OutputError(
                f"{self._job.view.slide} is damaged: {len(unreadable)} of {total} tiles with tissue ({share:.1%}) "
                f"cannot be read, but only {allowed:.1%} are allowed; copy the slide again from its source, or allow "
                "more, for example --set max_unreadable=0.1"
            )

    def _in_output(self, boxes: set[Box]) -> tuple[Box, ...]:
        """Tiles of the view as boxes of the output, clipped, sorted."""
        grid = self._job.grid
        return tuple(sorted(grid.in_output(box & grid.region) for box in boxes))

    def _count(self, block: BlockReport) -> None:
        self._done_blocks += 1
        self._done_tiles += block.tissue
        self._generated += block.generated
        self._repeats += block.offset_tiles
        self._usage.add(block.seconds, block.where)

    def report(self, stage: Stage) -> None:
        """Report progress."""
        blocks, tiles = len(self._survey.blocks), self._estimate.tissue_tiles
        now = time.perf_counter()
        wall, usage = now - self._staining_since, self._usage
        self._on_progress(
            Progress(
                stage,
                self._done_blocks,
                blocks,
                self._done_tiles,
                tiles,
                now - self._start,
                dict(usage.seconds),
                usage.shares(wall),
                usage.device_busy(wall),
            )
        )

    @contextmanager
    def _stage(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self._stages[name] = time.perf_counter() - start

    def record(self, unreadable: tuple[Box, ...], certificate: dict[str, Any] | None) -> dict[str, Any]:
        """Write the record of the run; returns its content."""
        seconds = time.perf_counter() - self._start
        survey, job, stain, usage = self._survey, self._job, self._stages["stain"], self._usage
        arguments = {key: value for key, value in dump(self._request).items() if key != "config"}
        content = {
            "notice": ometiff.NOTICE,
            "output": job.output.name,
            "fingerprint": job.fingerprint.as_dict(),
            "source_stamp": survey.source_stamp,
            "slide": survey.reading.as_dict(),
            "arguments": arguments if self._request.keep_paths else without_home(arguments),
            "config": dump(self._request.config),
            "versions": self._versions[-1],
            "earlier_versions": self._versions[:-1],
            "device": self._device,
            "tiles": {
                "all": survey.tiles,
                "tissue": survey.tissue_tiles,
                "generated_in_this_run": self._generated,
                "stained_again_in_this_run": self._repeats,
            },
            "blocks": {"all": len(survey.blocks), "painted_in_this_run": self._painted},
            "unreadable": [[box.x0, box.y0, box.size.w, box.size.h] for box in unreadable],
            "size_px": list(job.grid.region.size),
            "seconds": {"all": seconds, **self._stages, "threads": usage.seconds},
            "threads": len(usage.threads),
            "shares": usage.shares(stain),
            "device_busy": usage.device_busy(stain),
            "tiles_per_s": self._generated / stain if stain else 0.0,
            "peak_memory_bytes": record.peak_memory_bytes(),
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seams": certificate,
            "input": self.verdict and self.verdict.as_dict(),
        }
        record.write(record.path_of(job.output), content)
        return content


def _unreadable(canvas: Canvas) -> set[Box]:
    """Unreadable tiles that the painted blocks recorded, in the view's frame."""
    return {Box(*box) for notes in canvas.store.notes() for box in notes["unreadable"]}


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
