"""`wsi-stain cohort`: convert many slides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from wsi_stain.cli.renamed import RenamedOptions
from wsi_stain.config.convert import PrecisionChoice

if TYPE_CHECKING:
    from wsi_stain.cohort.plan import CohortPlan
    from wsi_stain.cohort.progress import Event
    from wsi_stain.cohort.request import CohortRequest
    from wsi_stain.cohort.status import Overview

MOST_SHOWN = 20
"""Number of failures that `run` prints at the end; `status` shows all."""


class RowsType(click.ParamType[Any]):
    """Numbers and ranges of numbers: 3,7-9."""

    name = "N,N-N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        rows: list[int] = []
        try:
            for part in value.split(","):
                first, dash, last = part.partition("-")
                numbers = range(int(first), int(last if dash else first) + 1)
                if not numbers:
                    raise ValueError("the range is empty")
                rows += numbers
        except ValueError:
            self.fail(f"{value!r} is not a list of slides: write, for example, 3,7-9 (the first slide is 1)")
        return tuple(rows)


class ShardType(click.ParamType[Any]):
    """I/N."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        try:
            number, count = (int(part) for part in value.split("/"))
        except ValueError:
            self.fail(f"{value!r} is not a share: write, for example, 3/10 for the third of ten jobs")
        return number, count


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that define a cohort and its conversion."""
    options = [
        click.argument("sheet"),
        click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Output folder."),
        click.option("--model", help="Model bundle for rows without one. [default: the shipped model]"),
        click.option("--mpp", type=float, help="Pixel size in µm for rows without one."),
        click.option(
            "--mask",
            type=click.Choice(["auto", "none"]),
            default="auto",
            show_default=True,
            help="Mask for rows without one.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--precision",
            type=click.Choice(get_args(PrecisionChoice)),
            default="auto",
            show_default=True,
            help="Numeric precision; auto picks the fastest that the device supports.",
        ),
        click.option("--allow-upsampling", is_flag=True, help="Accept slides coarser than the model's µm/px."),
        click.option("--allow-virtual", is_flag=True, help="Accept slides that are virtual stains already."),
        click.option("--force-brightfield", is_flag=True, help="Accept slides without a bright background."),
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with settings."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting, e.g. convert.grid.overlap=64."
        ),
        click.option(
            "--strict",
            is_flag=True,
            help="Refuse SHEET if a row cannot be used; slides that are no H&E fail.",
        ),
        click.option("--rows", type=RowsType(), help="Convert only these slides, e.g. 3,7-9; the first is 1."),
        click.option("--shard", type=ShardType(), help="Convert only part I of N, for job arrays."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group("cohort")
def command() -> None:
    """Convert many slides on this machine or a cluster; a failed slide does not stop the others.

    \b
    wsi-stain cohort plan sheet.csv -o out      estimate time, memory and disk
    wsi-stain cohort run sheet.csv -o out       convert; re-run the same command to resume
    wsi-stain cohort status out                 show progress, on any machine with access to the folder
    wsi-stain cohort qupath out                 write a script that creates a QuPath project

    SHEET is a CSV with the column slide and the optional columns slide_id, mpp, model, mask, image and z (paths are
    relative to the CSV), a folder of slides, or a quoted glob pattern. Virtual stains are for research use only.
    """


@command.command(cls=RenamedOptions)
@request_options
@click.option("--cluster", type=click.Path(path_type=Path), help="YAML file of the cluster to run on.")
@click.option("--scheduler", metavar="ADDRESS", help="Address of a running Dask scheduler.")
@click.option("--retry-failed", is_flag=True, help="Retry slides that failed in an earlier run.")
@click.option(
    "--break-stale-locks",
    is_flag=True,
    help="Break the locks of processes on other hosts, after a minute without a heartbeat. Use it only if they ended.",
)
def run(**options: Any) -> int:
    """Convert the unfinished slides of SHEET; summary.html in the output folder lists the result of each.

    A row that cannot be used fails alone, and the others are converted. The exit code is 1 if any slide failed or was
    left to another run.
    """
    from wsi_stain.cohort.run import run as run_cohort
    from wsi_stain.cohort.summary import HTML

    request = _request(log_lines=not sys.stderr.isatty(), **options)
    with _shown() as show:
        result = run_cohort(request, show)
    for name, reason in list(result.failed.items())[:MOST_SHOWN]:
        click.echo(f"failed: {name}: {reason}", err=True)
    if len(result.failed) > MOST_SHOWN:
        click.echo(f"… and more: see wsi-stain cohort status {request.folder}", err=True)
    click.echo(f"{result.done} of {result.total} slides are done, {len(result.failed)} failed", err=True)
    if result.failed and not request.retry_failed:
        click.echo("fix the cause of each failure, then re-run the command with --retry-failed", err=True)
    click.echo(str(request.folder / HTML))
    return 0 if result.is_complete else 1


@command.command(cls=RenamedOptions)
@request_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(as_json: bool, **options: Any) -> int:
    """Estimate time, memory and disk of `run` on this machine from a two-second sample; nothing is written.

    Rows that cannot be used are listed. The exit code is 1 if there are any, or if memory or disk is too small.
    """
    from wsi_stain.cli.progress import counted
    from wsi_stain.cohort.plan import check_resources
    from wsi_stain.cohort.plan import plan as plan_cohort

    request = _request(**options)
    cohort_plan = plan_cohort(request, counted("slides examined"))
    click.echo(_json(_plan_figures(cohort_plan)) if as_json else "\n".join(_plan_lines(cohort_plan)))
    if cohort_plan.faulty:
        from wsi_stain.cohort.sheet import table

        click.echo(table(cohort_plan.faulty, request.sheet, "; `run` records them as failed"), err=True)
    check_resources(cohort_plan)
    return 1 if cohort_plan.faulty else 0


@command.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def status(folder: Path, as_json: bool) -> int:
    """Show which slides in FOLDER are done, running, failed (and why) or waiting. The exit code is 1 if any failed."""
    from wsi_stain.cohort.status import overview

    progress = overview(folder)
    click.echo(_json(_status_figures(progress)) if as_json else "\n".join(_status_lines(progress)))
    return 1 if progress.counts.get("failed") else 0


@command.command()
@click.argument("folder", type=click.Path(path_type=Path))
def qupath(folder: Path) -> None:
    """Write a script that creates a QuPath project from FOLDER: each H&E and its virtual stain, with type and name set.

    In QuPath: Automate > Script editor, open the script, Run. To view both in sync: View > Multi-view > Set grid size >
    1 × 2, drag the H&E into one half and the virtual stain into the other, and View > Multi-view > Synchronize viewers.
    """
    from wsi_stain.cohort.qupath import write_script

    path = write_script(folder)
    click.echo(str(path))
    click.echo(
        f"in QuPath: Automate > Script editor, open the script, Run; without a window: QuPath script {path}", err=True
    )


def _request(*, config_file: Path | None = None, settings: tuple[str, ...] = (), **options: Any) -> CohortRequest:
    from wsi_stain.cohort.request import CohortConfig, CohortRequest
    from wsi_stain.config.loader import load
    from wsi_stain.model.bundle import DEFAULT

    options |= {"model": options["model"] or DEFAULT, "rows": options["rows"] or ()}
    return CohortRequest(config=load(CohortConfig, config_file, settings), **options)


def _show_line(event: Event) -> None:
    from wsi_stain.cohort.log import line

    counts = {"done": event.done, "failed": event.failed, "total": event.total}
    seconds = round(event.seconds, 2) or None
    click.echo(line(event=event.kind, slide=event.slide_id, text=event.text, seconds=seconds, **counts), err=True)


@contextmanager
def _shown() -> Generator[Callable[[Event], None]]:
    """Yield a function that shows events: a progress bar on a terminal, JSON lines elsewhere."""
    from wsi_stain.cohort.log import log_as_lines

    if not sys.stderr.isatty():
        log_as_lines()
        yield _show_line
        return
    from rich import progress as rich
    from rich.console import Console

    columns = rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    description = rich.TextColumn("{task.description}")
    with rich.Progress(description, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("slides", total=None)

        def show(event: Event) -> None:
            failed = f", {event.failed} failed" if event.failed else ""
            bar.update(task, total=event.total, completed=event.done + event.failed, description=f"slides{failed}")
            if event.text and event.kind not in ("begin", "end"):
                bar.console.print(f"{event.kind}: {event.slide_id} {event.text}", markup=False, highlight=False)

        yield show


def _json(figures: Any) -> str:
    return json.dumps(figures, indent=1, ensure_ascii=False)


def _plan_lines(cohort_plan: CohortPlan) -> Iterator[str]:
    from wsi_stain.cli.progress import duration
    from wsi_stain.files.full_disk import gib

    width = max((len(slide.row.slide_id) for slide in cohort_plan.slides), default=0)
    for s in cohort_plan.slides:
        size = f"{s.size.w} × {s.size.h} px"
        yield (
            f"{s.row.slide_id:{width}}  {size:>19}  {s.tissue_tiles:>7} tiles  {duration(s.seconds):>7}  "
            f"{gib(s.memory_bytes):>10} memory  {gib(s.disk_bytes):>10} disk"
        )
    tiles = sum(slide.tissue_tiles for slide in cohort_plan.slides)
    yield f"{len(cohort_plan.slides)} slides to do, {cohort_plan.done} done; {tiles} tiles with tissue"
    yield f"time     about {duration(cohort_plan.seconds)}, one slide after another on this machine"
    for model, of in cohort_plan.samples:
        yield f"         {model} on {of.device}: {of.generate_s:.3g} s per tile ({of.tiles} tiles sampled)"
    yield f"memory   {gib(cohort_plan.memory_bytes)} at most, {gib(cohort_plan.free_memory_bytes)} free"
    yield f"disk     {gib(cohort_plan.disk_bytes)} at most, {gib(cohort_plan.free_disk_bytes)} free"


def _plan_figures(cohort_plan: CohortPlan) -> dict[str, Any]:
    from wsi_stain.config.loader import dump

    totals = {key: getattr(cohort_plan, key) for key in ("seconds", "memory_bytes", "disk_bytes", "done")}
    free = {"free_disk_bytes": cohort_plan.free_disk_bytes, "free_memory_bytes": cohort_plan.free_memory_bytes}
    faulty = [dump(problem) for problem in cohort_plan.faulty]
    return {**totals, **free, "slides": [dump(slide) for slide in cohort_plan.slides], "faulty": faulty}


def _status_lines(progress: Overview) -> Iterator[str]:
    from wsi_stain.cli.progress import duration

    for row, state in progress.of("failed"):
        yield f"failed       {row.slide_id}: {state.reason}"
    for row, state in progress.of("running"):
        yield f"running      {row.slide_id}: {state.progress:.0%} after {duration(state.seconds)}, {state.reason}"
    for row, state in progress.of("interrupted"):
        yield f"interrupted  {row.slide_id}" + (f": {state.reason}" if state.reason else "")
    counts = progress.counts
    states = ", ".join(f"{counts[state]} {state}" for state in ORDER if state in counts)
    left = "" if progress.seconds_left is None else f"; about {duration(progress.seconds_left)} left"
    yield f"{len(progress.slides)} slides: {states}{left}"


ORDER = ("done", "running", "failed", "interrupted", "waiting")


def _status_figures(progress: Overview) -> dict[str, Any]:
    slides = [
        {"slide_id": row.slide_id, "state": state.state, "reason": state.reason, "progress": state.progress}
        for row, state in progress.slides
    ]
    return {"counts": progress.counts, "seconds_left": progress.seconds_left, "slides": slides}
