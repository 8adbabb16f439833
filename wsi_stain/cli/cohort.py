"""`wsi-stain cohort`: many slides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from wsi_stain.config.convert import PrecisionChoice

if TYPE_CHECKING:
    from wsi_stain.cohort.plan import CohortPlan
    from wsi_stain.cohort.request import CohortRequest
    from wsi_stain.cohort.run import Event
    from wsi_stain.cohort.status import Overview

MOST_SHOWN = 20
"""Failures that `run` repeats at its end; `status` shows all."""


class RowsType(click.ParamType[Any]):
    """Numbers and spans of numbers: 3,7-9."""

    name = "N,N-N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        rows: list[int] = []
        try:
            for part in value.split(","):
                first, dash, last = part.partition("-")
                rows += range(int(first), int(last if dash else first) + 1)
        except ValueError:
            self.fail(f"{value!r} is no list of slides: write for example 3,7-9 (the first slide is 1)")
        return tuple(rows)


class ShareType(click.ParamType[Any]):
    """I/N."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        try:
            number, count = (int(part) for part in value.split("/"))
        except ValueError:
            self.fail(f"{value!r} is no share: write for example 3/10, the third of ten jobs")
        return number, count


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say what a cohort is and how it is done."""
    options = [
        click.argument("sheet"),
        click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder."),
        click.option("--model", help="Bundle of rows that name none; the default model if not given."),
        click.option("--mpp", type=float, help="µm per px of rows that name none."),
        click.option("--mask", type=click.Choice(["auto", "none"]), default="auto", help="Of rows that name none."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option("--precision", type=click.Choice(get_args(PrecisionChoice)), default="auto", show_default=True),
        click.option("--allow-upsampling", is_flag=True, help="Accept slides coarser than the model's µm/px."),
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML of settings."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. convert.grid.overlap=64."),
        click.option("--rows", type=RowsType(), help="Only these slides, e.g. 3,7-9; the first is 1."),
        click.option("--only", type=ShareType(), help="Only share I of N, for arrays of jobs."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group("cohort")
def command() -> None:
    """Convert many slides, on this machine or a cluster; a bad slide fails alone.

    \b
    wsi-stain cohort plan sheet.csv -o out      how long, how much memory and disk
    wsi-stain cohort run sheet.csv -o out       re-run the same command to resume
    wsi-stain cohort status out                 from any machine that sees the folder
    wsi-stain cohort qupath out                 a script that makes a QuPath project

    SHEET is a CSV with the column slide and, if wanted, slide_id, mpp, model, mask (paths relative to it); or a folder
    of slides; or a quoted glob. Virtual stains are for research use only.
    """


@command.command()
@request_options
@click.option("--cluster", type=click.Path(path_type=Path), help="YAML of a cluster to run on.")
@click.option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler.")
@click.option("--retry-failed", is_flag=True, help="Try slides again that failed in an earlier run.")
@click.option("--take-over", is_flag=True, help="Break locks of processes on other hosts: only if they are dead.")
def run(**options: Any) -> int:
    """Convert the slides of SHEET that are not done; summary.html in the folder says what became of each.

    Exit code 1 if any slide failed or was left to another run.
    """
    from wsi_stain.cohort.run import run as run_cohort
    from wsi_stain.cohort.summary import HTML

    request = _request(log_lines=not sys.stderr.isatty(), **options)
    with _shown() as show:
        result = run_cohort(request, show)
    for name, reason in list(result.failed.items())[:MOST_SHOWN]:
        click.echo(f"failed: {name}: {reason}", err=True)
    if len(result.failed) > MOST_SHOWN:
        click.echo(f"… and more: wsi-stain cohort status {request.folder}", err=True)
    click.echo(f"{result.done} of {result.total} slides are done, {len(result.failed)} failed", err=True)
    if result.failed and not request.retry_failed:
        click.echo("mend what is wrong with them and repeat the command with --retry-failed", err=True)
    click.echo(str(request.folder / HTML))
    return 0 if result.is_complete else 1


@command.command()
@request_options
@click.option("--json", "as_json", is_flag=True, help="Print figures instead of a table.")
def plan(as_json: bool, **options: Any) -> int:
    """Say what `run` would take on this machine: time, memory and disk, from a two-second sample; writes nothing.

    Exit code 1 if it cannot fit.
    """
    from wsi_stain.cli.progress import counted
    from wsi_stain.cohort.plan import check_room
    from wsi_stain.cohort.plan import plan as plan_cohort

    made = plan_cohort(_request(**options), counted("slides looked at"))
    click.echo(_json(_plan_figures(made)) if as_json else "\n".join(_plan_lines(made)))
    check_room(made)
    return 0


@command.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print figures instead of lines.")
def status(folder: Path, as_json: bool) -> int:
    """Say what is done, running, failed (and why) and waiting in FOLDER. Exit code 1 if any slide failed."""
    from wsi_stain.cohort.status import overview

    found = overview(folder)
    click.echo(_json(_status_figures(found)) if as_json else "\n".join(_status_lines(found)))
    return 1 if found.counts.get("failed") else 0


@command.command()
@click.argument("folder", type=click.Path(path_type=Path))
def qupath(folder: Path) -> None:
    """Write a script with which QuPath makes a project of FOLDER: each H&E with its virtual stain, types and names set.

    In QuPath: Automate > Script editor, open the script, Run. To see both in step: View > Multi-view > Set grid size >
    1 × 2, drag the H&E into one half and the virtual stain into the other, and View > Multi-view > Synchronize viewers.
    """
    from wsi_stain.cohort.qupath import write_script

    path = write_script(folder)
    click.echo(str(path))
    click.echo(f"in QuPath: Automate > Script editor, open it, Run; without a window: QuPath script {path}", err=True)


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
    """A function that shows events: a bar on a terminal, elsewhere JSON lines."""
    from wsi_stain.cohort.log import log_as_lines

    if not sys.stderr.isatty():
        log_as_lines()
        yield _show_line
        return
    from rich import progress as rich
    from rich.console import Console

    columns = rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    words = rich.TextColumn("{task.description}")
    with rich.Progress(words, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("slides", total=None)

        def show(event: Event) -> None:
            failed = f", {event.failed} failed" if event.failed else ""
            bar.update(task, total=event.total, completed=event.done + event.failed, description=f"slides{failed}")
            if event.text and event.kind not in ("begin", "end"):
                bar.console.print(f"{event.kind}: {event.slide_id} {event.text}", markup=False, highlight=False)

        yield show


def _json(figures: Any) -> str:
    return json.dumps(figures, indent=1, ensure_ascii=False)


def _plan_lines(made: CohortPlan) -> Iterator[str]:
    from wsi_stain.cli.progress import duration
    from wsi_stain.conversion.resources import gib

    width = max((len(slide.row.slide_id) for slide in made.slides), default=0)
    for s in made.slides:
        size = f"{s.size.w} × {s.size.h} px"
        yield (
            f"{s.row.slide_id:{width}}  {size:>19}  {s.tissue_tiles:>7} tiles  {duration(s.seconds):>7}  "
            f"{gib(s.memory_bytes):>10} memory  {gib(s.disk_bytes):>10} disk"
        )
    tiles = sum(slide.tissue_tiles for slide in made.slides)
    yield f"{len(made.slides)} slides to do, {made.done} done; {tiles} tiles with tissue"
    yield f"time     about {duration(made.seconds)}, one slide after the other on this machine"
    for model, of in made.samples:
        yield f"         {model} on {of.device}: {of.generate_s:.3g} s a tile ({of.tiles} tiles sampled)"
    yield f"memory   {gib(made.memory_bytes)} at most, {gib(made.free_memory_bytes)} free"
    yield f"disk     {gib(made.disk_bytes)} at most, {gib(made.free_disk_bytes)} free"


def _plan_figures(made: CohortPlan) -> dict[str, Any]:
    from wsi_stain.config.loader import dump

    totals = {key: getattr(made, key) for key in ("seconds", "memory_bytes", "disk_bytes", "done")}
    free = {"free_disk_bytes": made.free_disk_bytes, "free_memory_bytes": made.free_memory_bytes}
    return {**totals, **free, "slides": [dump(slide) for slide in made.slides]}


def _status_lines(found: Overview) -> Iterator[str]:
    from wsi_stain.cli.progress import duration

    for row, state in found.of("failed"):
        yield f"failed       {row.slide_id}: {state.reason}"
    for row, state in found.of("running"):
        yield f"running      {row.slide_id}: {state.share:.0%} after {duration(state.seconds)}, {state.reason}"
    for row, state in found.of("interrupted"):
        yield f"interrupted  {row.slide_id}" + (f": {state.reason}" if state.reason else "")
    counts = found.counts
    said = ", ".join(f"{counts[state]} {state}" for state in ORDER if state in counts)
    left = "" if found.seconds_left is None else f"; about {duration(found.seconds_left)} left"
    yield f"{len(found.slides)} slides: {said}{left}"


ORDER = ("done", "running", "failed", "interrupted", "waiting")


def _status_figures(found: Overview) -> dict[str, Any]:
    slides = [
        {"slide_id": row.slide_id, "state": state.state, "reason": state.reason, "share": state.share}
        for row, state in found.slides
    ]
    return {"counts": found.counts, "seconds_left": found.seconds_left, "slides": slides}
