"""Task of a worker for one slide: convert it under a lease, write its account, and return its outcome."""

from __future__ import annotations

import errno
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from wsi_stain.cluster import is_retiring
from wsi_stain.cohort.account import account_of
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.lease import LOOK_S, STALE_S, Lease, LeaseLost, Pulse, read_lease
from wsi_stain.cohort.log import log_as_lines
from wsi_stain.cohort.request import CohortRequest, Row, to_convert
from wsi_stain.config.convert import Precision
from wsi_stain.conversion.engine import Progress, convert
from wsi_stain.conversion.source import SourceChanged
from wsi_stain.errors import InsufficientResources, InUse, SlideError, WorkersLost, WsiStainError
from wsi_stain.files import lock, record
from wsi_stain.files.full_disk import causes, is_full
from wsi_stain.slide.files import files_of

Ending = Literal["done", "failed", "may pass", "no room", "in use", "stopped"]

MAY_PASS = frozenset(
    {
        *(errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET),
        *(errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESTALE),
    }
)
"""Transient errors of network file systems, which are retried."""
MOST_WATCHED = 1000
"""Files of a slide that are looked at after every block; a Zarr has more."""


@dataclass(frozen=True, slots=True)
class SlideTask:
    """Input of a worker for one slide."""

    request: CohortRequest
    row: Row
    blocks: int
    """Approximate number of blocks of the slide; it can use at most as many threads."""
    attempt: int = 1
    spared: int = 0
    """Number of lost workers that had received the slide but not started it."""
    scheduler: str = ""
    """Identity of the Dask scheduler."""
    spread: str | None = None
    """Address of the scheduler if the blocks of the slide are distributed over all its workers."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a slide; small, since it is sent over the network."""

    ending: Ending
    reason: str = ""
    seconds: float = 0.0


class _Threads:
    """The threads of a worker, shared among the slides in progress; first come, first served."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._change = threading.Condition()
        self._queue: list[object] = []

    @contextmanager
    def __call__(self, count: int) -> Generator[int]:
        """Wait for `count` of the threads; for all, if there are fewer."""
        count, me = max(1, min(count, self._total)), object()
        with self._change:
            self._queue.append(me)
            self._change.wait_for(lambda: self._queue[0] is me and self._free >= count)
            self._queue.pop(0)
            self._free -= count
            self._change.notify_all()
        try:
            yield count
        finally:
            with self._change:
                self._free += count
                self._change.notify_all()


_of_workers: WeakKeyDictionary[Any, _Threads] = WeakKeyDictionary()
"""The threads of every Dask worker in this process; there may be several, one after the other or at once."""
_guard = threading.Lock()


def convert_slide(task: SlideTask) -> Outcome:
    """Convert one slide in a Dask task; failures are returned and written next to the outputs."""
    if task.request.log_lines:
        log_as_lines()
    from distributed import get_worker, secede

    try:
        worker = get_worker()
    except ValueError:  # outside a worker
        return _under_lease(task, 0, "")
    if task.spread is not None:
        secede()  # frees this thread for the blocks
        return _under_lease(task, 0, worker.address)
    with _threads_of(worker)(task.blocks) as threads:
        return _under_lease(task, threads if threads > 1 else 0, worker.address)


def _threads_of(worker: Any) -> _Threads:
    with _guard:
        return _of_workers.setdefault(worker, _Threads(worker.state.nthreads))


def _under_lease(task: SlideTask, threads: int, address: str) -> Outcome:
    folder, start = Folder(task.request.folder.absolute()), time.perf_counter()
    try:
        if task.request.break_stale_locks:
            _break_stale_lock(folder, task.row)
        _wait_for_previous(folder, task, address)
        with Lease(folder.running_file(task.row), {"worker": address, "scheduler": task.scheduler}) as lease:
            _convert(task, folder, lease, threads)
            folder.failed_file(task.row).unlink(missing_ok=True)
    except LeaseLost:
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
            raise LeaseLost
        lease.check()
        is_there()
        lease.progress = event.done_blocks / event.blocks if event.blocks else 0.0

    convert(request, show)
    record.write(folder.account_file(task.row), account_of(task.row, request))


def _begun_in(folder: Folder, row: Row) -> Precision | None:
    """Precision of an unfinished or finished conversion; a resumed slide keeps it on any device."""
    unfinished = record.read(folder.spool_lock(row).with_name("run.json"))
    done = record.read(record.path_of(folder.output(row))).get("fingerprint", {})
    return unfinished.get("precision") or done.get("precision")


def watched(slide: Path) -> Callable[[], None]:
    """A function that raises SlideError if the slide was deleted or changed, which an open file would hide.

    If it was changed, it raises `SourceChanged`, and the conversion discards what it has painted.
    """

    def facts() -> list[tuple[int, int]]:
        return [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in parts)]

    def look() -> None:
        try:
            is_changed = facts() != before
        except FileNotFoundError as err:
            raise SlideError(
                f"{slide} was deleted during the conversion; restore it and re-run with --retry-failed to resume"
            ) from err
        if is_changed:
            raise SourceChanged(
                f"{slide} was changed during the conversion; wait until it is fully copied, then convert it again"
            )

    try:
        parts = files_of(slide)[:MOST_WATCHED]
        before = facts()
    except FileNotFoundError as err:
        raise SlideError(f"no such file: {slide}; it existed when the sheet was checked; restore it") from err
    return look


def _failed(task: SlideTask, folder: Folder, err: Exception) -> Outcome:
    """Record a failure, unless it will be retried."""
    numbers = {cause.errno for cause in causes(err) if isinstance(cause, OSError)}
    no_resources = isinstance(err, InsufficientResources) or is_full(err)
    reason = _message(err)
    may_pass = bool(numbers & MAY_PASS) or isinstance(err, WorkersLost)
    if not no_resources and may_pass and task.attempt <= task.request.config.retries:
        return Outcome("may pass", reason)
    trace = "".join(traceback.format_exception(err))
    with suppress(OSError):  # a full disk cannot store the record; the coordinator reports the failure
        folder.fail(task.row, reason, retry=no_resources, attempts=task.attempt, trace=trace)
    return Outcome("no room" if no_resources else "failed", reason)


def _message(err: Exception) -> str:
    if isinstance(err, WsiStainError):
        return str(err)
    if isinstance(err, OSError) and err.strerror:
        return f"{err.filename or 'the file system'}: {err.strerror}"
    return f"{type(err).__name__}: {err}; this is a bug: please report it with the traceback"


def _wait_for_previous(folder: Folder, task: SlideTask, address: str) -> None:
    """Wait for the previous worker of the slide in this cluster, and remove its lease and lock if it is lost.

    Dask reassigns the task of a worker that leaves or is lost. A leaving worker stops at its next block. A lost worker
    on another host cannot be checked from here; it counts as dead if its heartbeat does not change for `STALE_S`. If it
    is still alive, it detects that its lease was removed and stops.
    """
    path = folder.running_file(task.row)
    lease = read_lease(path)
    if not task.scheduler or lease.get("scheduler") != task.scheduler or lease.get("worker") == address:
        return
    _remove_when_silent(folder, task.row, lease)


def _break_stale_lock(folder: Folder, row: Row) -> None:
    """Remove lease and lock of a process on another host, given --break-stale-locks, if it sends no heartbeat."""
    lease = read_lease(folder.running_file(row))
    if lease and lock.is_foreign(lease):
        _remove_when_silent(folder, row, lease, gives_up=True)


def _remove_when_silent(folder: Folder, row: Row, lease: dict[str, Any], *, gives_up: bool = False) -> None:
    """Watch a lease until its holder removes it, dies, or is silent for `STALE_S`, and then is removed.

    Args:
        folder: the cohort.
        row: the slide.
        lease: of the slide.
        gives_up: whether to leave a holder alone as soon as it sends a heartbeat.
    """
    path, pulse, current = folder.running_file(row), Pulse(), lease
    while current.get("token") == lease.get("token") and not lock.is_dead(current):
        if gives_up and current.get("beat") != lease.get("beat"):
            return
        if pulse.silence_s(current) > STALE_S:
            _remove(folder, row, current)
            return
        time.sleep(min(LOOK_S, STALE_S))
        current = read_lease(path)


def _remove(folder: Folder, row: Row, lease: dict[str, Any]) -> None:
    """Remove a lease, and the lock of the conversion that ran under it."""
    owner = lock.holder(folder.spool_lock(row))
    if owner and (owner.get("host"), owner.get("pid")) == (lease["host"], lease["pid"]):
        folder.spool_lock(row).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(folder.running_file(row))
