"""Progress of conversions and trainings, printed to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wsi_stain.conversion.engine import Progress
    from wsi_stain.train.loop import Step

LINE_EVERY_S = 10.0
WORDS = {
    "plan": "reading the slide's hash and finding tissue",
    "stain": "staining",
    "assemble": "assembling the file",
    "check": "checking the file",
    "done": "done",
}
VERBS = {"read": "reading", "blend": "blending", "write": "encoding and writing"}
"""Stages of the threads, without `generate` (one thread holds the device) and `wait` (threads wait for it)."""


@contextmanager
def shown() -> Generator[Callable[[Progress], None]]:
    """Yield a function that shows the engine's events."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, speed="")

        def show(event: Progress) -> None:
            bar.update(
                task,
                description=WORDS[event.stage],
                total=event.tiles or None,
                completed=event.done_tiles if event.stage == "stain" else event.tiles,
                speed=speed(event),
            )

        yield show


class _Lines:
    """Writes a line at each new stage and every few seconds in between."""

    def __init__(self) -> None:
        self._last, self._stage = 0.0, ""

    def show(self, event: Progress) -> None:
        now = time.monotonic()
        if event.stage == self._stage and now - self._last < LINE_EVERY_S:
            return
        self._last, self._stage = now, event.stage
        text = (
            f"{WORDS[event.stage]}: {event.done_blocks}/{event.blocks} blocks" if event.blocks else WORDS[event.stage]
        )
        click.echo(", ".join(part for part in (text, speed(event), time_left(event)) if part), err=True)


def speed(event: Progress) -> str:
    """Tiles per second and the bottleneck, for example `2.1 tiles/s, reading 12%, device 97%`.

    The stage is the one that takes most of the threads' time. If the device is near 100 %, it limits the speed;
    otherwise the threads do, and more `--workers` help if processors are idle.
    """
    if event.stage != "stain" or not event.done_tiles or not event.seconds:
        return ""
    text = f"{event.done_tiles / event.seconds:.1f} tiles/s"
    shares = {stage: share for stage, share in event.shares.items() if stage in VERBS}
    if not shares:
        return text
    largest = max(shares, key=lambda stage: shares[stage])
    return f"{text}, {VERBS[largest]} {shares[largest]:.0%}, device {event.device_busy:.0%}"


def time_left(event: Progress) -> str:
    """Time left, estimated from the tiles done in this run; empty before the first tile."""
    if event.stage != "stain" or not event.done_tiles:
        return ""
    return _left(event.seconds / event.done_tiles * (event.tiles - event.done_tiles))


def _left(seconds: float) -> str:
    return f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """A duration as text, for example `12 min`."""
    if seconds >= 3 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def counted(noun: str) -> Callable[[int, int], None]:
    """A function that prints `done/total` to standard error every few seconds and at the end."""
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            click.echo(f"{done}/{total} {noun}", err=True)

    return show


class TrainingLine:
    """Prints a line every few seconds of a training: images, speed, time left, losses."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, step: Step) -> None:
        """Print the step if the last line is old enough."""
        now = time.monotonic()
        if now - self._last < LINE_EVERY_S and step.images < step.total:
            return
        self._last = now
        losses = ", ".join(f"{name} {value:.3f}" for name, value in step.losses.items())
        waiting = f", {step.waiting:.0%} of the time waiting for crops" if step.waiting >= 0.05 else ""
        click.echo(
            f"{step.images:,}/{step.total:,} images, {step.images_per_s:.1f}/s, "
            f"{_left((step.total - step.images) / step.images_per_s)}, {losses}{waiting}",
            err=True,
        )
