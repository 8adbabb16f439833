"""What a worker does with one slide: convert it under a lease, write its account, say what became of it."""

from __future__ import annotations

import errno
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wsi_stain.cluster import is_retiring
from wsi_stain.cohort.account import account_of
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.lease import LOOK_S, STALE_S, Lease, Withdrawn, read_lease
from wsi_stain.cohort.log import log_as_lines
from wsi_stain.cohort.request import CohortRequest, Row, to_convert
from wsi_stain.config.convert import Precision
from wsi_stain.conversion.engine import Progress, convert
from wsi_stain.errors import InUse, NoRoom, SlideError, WsiStainError
from wsi_stain.files import lock, record

Ending = Literal["done", "failed", "may pass", "no room", "in use", "stopped"]

MAY_PASS = frozenset(
    {
        *(errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET),
        *(errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESTALE),
    }
)
"""What network file systems say when they are not well: worth another try."""


@dataclass(frozen=True, slots=True)
class SlideTask:
    """Everything a worker needs to know."""

    request: CohortRequest
    row: Row
    blocks: int
    """Of the slide, about: it can use no more threads."""
    attempt: int = 1
    spared: int = 0
    """How often a worker died that had it and had not begun it."""
    scheduler: str = ""
    """Identity of the Dask scheduler."""
    spread: str | None = None
    """Its address, where the slide's blocks are to go to all its workers."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a slide; small, since it travels."""

    ending: Ending
    reason: str = ""
    seconds: float = 0.0


class _Threads:
    """The threads of this process, shared out among the slides in work; first come, first served."""

    def __init__(self) -> None:
        self._free: int | None = None
        self._change = threading.Condition()
        self._queue: list[object] = []

    @contextmanager
    def __call__(self, wanted: int, total: int) -> Generator[int]:
        """Waits for `wanted` of the process's `total` threads."""
        wanted, me = max(1, min(wanted, total)), object()
        with self._change:
            self._free = total if self._free is None else self._free
            self._queue.append(me)
            self._change.wait_for(lambda: self._queue[0] is me and (self._free or 0) >= wanted)
            self._queue.pop(0)
            self._free -= wanted
            self._change.notify_all()
        try:
            yield wanted
        finally:
            with self._change:
                self._free += wanted
                self._change.notify_all()


_threads = _Threads()


def convert_slide(task: SlideTask) -> Outcome:
    """Convert one slide; what a Dask task runs. Whatever goes wrong is told, and written beside the outputs."""
    if task.request.log_lines:
        log_as_lines()
    total, address = _worker()
    if task.spread is not None:
        from distributed import secede

        secede()  # its blocks need this thread
        return _under_lease(task, 0, address)
    with _threads(task.blocks, total) as threads:
        return _under_lease(task, threads if threads > 1 else 0, address)


def _worker() -> tuple[int, str]:
    """Threads and address of the Dask worker that this is; one thread where it is none."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return 1, ""
    return worker.state.nthreads, worker.address


def _under_lease(task: SlideTask, threads: int, address: str) -> Outcome:
    folder, start = Folder(task.request.folder.absolute()), time.perf_counter()
    try:
        if task.request.take_over:
            _take_over(folder, task.row)
        _wait_for_the_last(folder, task, address)
        with Lease(folder.running_file(task.row), {"worker": address, "scheduler": task.scheduler}) as lease:
            _convert(task, folder, lease, threads)
            folder.failed_file(task.row).unlink(missing_ok=True)
    except Withdrawn:
        return Outcome("stopped")
    except InUse as err:
        return Outcome("in use", str(err))
    except Exception as err:
        return _failed(task, folder, err)
    return Outcome("done", seconds=time.perf_counter() - start)


def _convert(task: SlideTask, folder: Folder, lease: Lease, threads: int) -> None:
    request = to_convert(task.request, task.row, threads)
    if request.precision == "auto":
        request = replace(request, precision=_begun_in(folder, task.row) or "auto")
    if task.spread is not None:
        request = replace(request, workers=None, scheduler=task.spread)
    is_there = watched(request.slide)

    def show(event: Progress) -> None:
        if is_retiring():
            raise Withdrawn
        lease.check()
        is_there()
        lease.share = event.done_blocks / event.blocks if event.blocks else 0.0

    convert(request, show)
    record.write(folder.account_file(task.row), account_of(task.row, request))


def _begun_in(folder: Folder, row: Row) -> Precision | None:
    """The precision of what is painted: a slide goes on in it, whatever suits the device of its next worker."""
    begun = record.read(folder.spool_lock(row).with_name("run.json"))
    done = record.read(record.path_of(folder.output(row))).get("fingerprint", {})
    return begun.get("precision") or done.get("precision")


def watched(slide: Path) -> Callable[[], None]:
    """A function that raises SlideError once the slide is gone or another: an open file would hide it."""

    def facts() -> tuple[int, int]:
        found = slide.stat()
        return (0, 0) if slide.is_dir() else (found.st_size, found.st_mtime_ns)

    def look() -> None:
        try:
            changed = facts() != before
        except FileNotFoundError as err:
            raise SlideError(
                f"{slide} vanished while it was converted: bring it back, and what was painted will be used again"
            ) from err
        if changed:
            raise SlideError(
                f"{slide} was changed while it was converted: wait until it is copied, then convert it again"
            )

    try:
        before = facts()
    except FileNotFoundError as err:
        raise SlideError(f"no such file: {slide}; it was there when the sheet was checked: bring it back") from err
    return look


def _failed(task: SlideTask, folder: Folder, err: Exception) -> Outcome:
    """Record a failure, unless it is tried again."""
    numbers = {cause.errno for cause in _causes(err) if isinstance(cause, OSError)}
    no_room = isinstance(err, NoRoom) or bool(numbers & {errno.ENOSPC, errno.EDQUOT})
    reason = _sentence(err)
    if not no_room and numbers & MAY_PASS and task.attempt <= task.request.config.retries:
        return Outcome("may pass", reason)
    trace = "".join(traceback.format_exception(err))
    with suppress(OSError):  # a full disk takes no record either; the coordinator says it
        folder.fail(task.row, reason, again=no_room, attempts=task.attempt, trace=trace)
    return Outcome("no room" if no_room else "failed", reason)


def _sentence(err: Exception) -> str:
    if isinstance(err, WsiStainError):
        return str(err)
    if isinstance(err, OSError) and err.strerror:
        return f"{err.filename or 'the file system'}: {err.strerror}"
    return f"{type(err).__name__}: {err}; this is a mistake of the software: please report it with the traceback"


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def _wait_for_the_last(folder: Folder, task: SlideTask, address: str) -> None:
    """Wait for the worker of this very cluster that had the slide before, and clear what it left if it is lost.

    Dask hands a task on from a worker that leaves or is gone. One that leaves ends at its next block. The death of one
    on another host cannot be seen from here; that Dask lost it and that its heart beat no more for a while is proof
    enough. Were it alive after all, it would find its lease gone and stop.
    """
    path = folder.running_file(task.row)
    lease = read_lease(path)
    if not task.scheduler or lease.get("scheduler") != task.scheduler or lease.get("worker") == address:
        return
    found = lease
    while found.get("token") == lease["token"] and not lock.is_dead(found):
        if time.time() - found["beat"] > STALE_S:
            _remove(folder, task.row, found)
            return
        time.sleep(LOOK_S)
        found = read_lease(path)


def _take_over(folder: Folder, row: Row) -> None:
    """Clear what a process on another host left; the user says that it is dead, and so does its heartbeat."""
    lease = read_lease(folder.running_file(row))
    if lease and lease["host"] != lock.this_process()["host"] and time.time() - lease.get("beat", 0.0) > STALE_S:
        _remove(folder, row, lease)


def _remove(folder: Folder, row: Row, lease: dict[str, Any]) -> None:
    """Remove a lease, and the lock of the conversion that ran under it."""
    owner = lock.holder(folder.spool_lock(row))
    if owner and (owner.get("host"), owner.get("pid")) == (lease["host"], lease["pid"]):
        folder.spool_lock(row).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(folder.running_file(row))
