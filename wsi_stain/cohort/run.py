"""Runs a cohort: one Dask task per slide, each failing alone; run again, it goes on.

    checked rows → those to do → tasks → outcomes → (again, after a lost worker) → summary

Nothing is remembered here that is not in the folder's files too: this process may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import math
import queue
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from wsi_stain.cluster import explain
from wsi_stain.cohort import words
from wsi_stain.cohort.check import checked
from wsi_stain.cohort.files import Folder, claimed, told_when_full
from wsi_stain.cohort.lease import read_lease
from wsi_stain.cohort.pool import Pool, cluster_of, pool
from wsi_stain.cohort.request import CohortRequest, Row
from wsi_stain.cohort.summary import write_summary
from wsi_stain.cohort.task import Outcome, SlideTask, convert_slide
from wsi_stain.errors import OutputError
from wsi_stain.files import lock

Kind = Literal["begin", "done", "failed", "again", "in use", "warning", "end"]

AHEAD = 1.5
"""Work handed out, over what the workers can do at once: the rest waits here, so that no worker hoards slides."""
LEAST_AHEAD = 8
"""Slides handed out where workers are few, or have not come yet."""
SPREAD_AT_ONCE = 2
"""Split slides in work at once: while one is assembled, the blocks of the other keep the workers busy."""
MOST_SPARED = 10
"""Deaths of workers that a slide is not blamed for, since it was not begun; after so many it is."""
TICK_S = 0.5
SUMMARY_EVERY_S = 30.0
ALONE = 1 << 30
"""Blocks that a slide is given out to have when its worker died: it gets a whole process to itself."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened; for whoever shows it."""

    kind: Kind
    slide_id: str = ""
    text: str = ""
    done: int = 0
    """Slides finished, those of earlier runs included."""
    failed: int = 0
    total: int = 0
    seconds: float = 0.0
    """What the slide took."""


@dataclass(slots=True)
class Result:
    """What a run left."""

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons by slide_id, failures of earlier runs that were not tried again included."""
    in_use: dict[str, str] = field(default_factory=dict)
    """Slides that somebody else is converting."""

    @property
    def is_complete(self) -> bool:
        """Whether every slide of this run is done."""
        return self.done == self.total


def run(request: CohortRequest, tell: Callable[[Event], None] | None = None) -> Result:
    """Convert the slides of a cohort that are not done; resumes what earlier runs left.

    Args:
        request: what to do. From a script, call it under `if __name__ == "__main__":`, since workers are processes.
        tell: called with every event.

    Raises:
        ConfigError: something in the sheet or the settings is wrong; nothing was started.
        InUse: another run works in the folder.
        OutputError: the scheduler was lost; the same call goes on.
    """
    cluster = cluster_of(request)
    rows = checked(request)
    with told_when_full(request.folder), claimed(request) as folder:
        folder.begin(request, rows)
        chosen = [row for index, row in enumerate(rows) if request.is_chosen(index)]
        result = Result(len(chosen))
        todo = list(_todo(request, folder, chosen, result))
        coordinator = _Coordinator(request, folder, result, tell or (lambda _: None))
        coordinator.say("begin", text=f"{len(todo)} slides to do")
        try:
            if todo:
                with pool(cluster, coordinator.demand) as workers:
                    coordinator.convert(todo, workers)
        finally:
            coordinator.tidy()
            coordinator.summarise()
        coordinator.say("end")
        return result


def _todo(request: CohortRequest, folder: Folder, rows: Iterable[Row], result: Result) -> Iterator[Row]:
    """The rows to convert; the others are counted."""
    for row in rows:
        state = folder.state(row)
        if state.state == "done" and folder.account_file(row).exists():
            result.done += 1
        elif state.state == "failed" and not (request.retry_failed or state.again):
            result.failed[row.slide_id] = state.reason
        else:
            yield row


class _Coordinator:
    """Hands slides out, and settles what comes back."""

    def __init__(self, request: CohortRequest, folder: Folder, result: Result, tell: Callable[[Event], None]) -> None:
        self._request, self._folder, self._result, self._tell = request, folder, result, tell
        self._flying: dict[Any, SlideTask] = {}
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._later: list[tuple[float, SlideTask]] = []
        self._begun: list[Row] = []
        self._waiting: deque[SlideTask] = deque()
        self._next_summary = time.monotonic() + SUMMARY_EVERY_S

    def say(self, kind: Kind, slide_id: str = "", text: str = "", seconds: float = 0.0) -> None:
        """Tell an event."""
        r = self._result
        self._tell(Event(kind, slide_id, text, r.done, len(r.failed), r.total, seconds))

    def convert(self, rows: list[Row], workers: Pool) -> None:
        """Convert the rows, the large ones first, so that none of them is left alone at the end."""
        self._pool, self._scheduler = workers, workers.scheduler
        rows = sorted(rows, key=lambda row: -row.pixels)
        limit = self._request.config.split_over * 1e9
        spread = [row for row in rows if row.pixels > limit] if len(workers.threads) > 1 else []
        try:
            self._all([self._task(row, workers.address) for row in spread], lambda: SPREAD_AT_ONCE)
            self._all([self._task(row) for row in rows if row not in spread], self._capacity)
        except BaseException:
            self._stop()
            raise

    def demand(self) -> int:
        """Slides that are not settled: a cluster starts no more workers than that."""
        return len(self._waiting) + len(self._later) + len(self._flying)

    def tidy(self) -> None:
        """Remove what workers of this host left that are gone: the next run may be on another host."""
        for row in self._begun:
            lock.remove_dead(self._folder.running_file(row))
            if self._folder.spool_lock(row).parent.exists():
                lock.remove_dead(self._folder.spool_lock(row))

    def summarise(self) -> None:
        """The summary so far; it may take a twentieth of the time, however many slides there are."""
        start = time.monotonic()
        try:
            write_summary(self._request.folder)
        except OSError as err:  # a full disk: the slides' own files say all that the summary would
            self.say("warning", text=f"the summary could not be written: {err.strerror}; make room and run again")
        took = time.monotonic() - start
        self._next_summary = time.monotonic() + max(SUMMARY_EVERY_S, 20 * took)

    def _task(self, row: Row, spread: str | None = None) -> SlideTask:
        blocks = max(1, math.ceil(row.pixels / self._request.config.convert.grid.block**2))
        return SlideTask(self._request, row, blocks, scheduler=self._scheduler, spread=spread)

    def _capacity(self) -> float:
        return max(LEAST_AHEAD, AHEAD * sum(self._pool.threads))

    def _weight(self, task: SlideTask) -> int:
        """Threads that a slide takes."""
        return 1 if task.spread else min(task.blocks, max(self._pool.threads, default=1))

    def _all(self, tasks: list[SlideTask], capacity: Callable[[], float]) -> None:
        """Hand out, settle, hand out again what may pass; until all is settled."""
        self._waiting = deque(tasks)
        while self.demand():
            self._waiting.extend(self._due())
            self._hand_out(self._waiting, capacity())
            with contextlib.suppress(queue.Empty):
                future = self._finished.get(timeout=TICK_S)
                task = self._flying.pop(future)
                self._settle(task, self._outcome(task, future))
            if time.monotonic() > self._next_summary:
                self.summarise()

    def _due(self) -> list[SlideTask]:
        now = time.monotonic()
        due = [task for when, task in self._later if when <= now]
        self._later = [(when, task) for when, task in self._later if when > now]
        return due

    def _hand_out(self, waiting: deque[SlideTask], capacity: float) -> None:
        load = sum(map(self._weight, self._flying.values()))
        while waiting and (not self._flying or load + self._weight(waiting[0]) <= capacity):
            task = waiting.popleft()
            load += self._weight(task)
            self._begun.append(task.row)
            future = self._pool.client.submit(convert_slide, task, pure=False)
            self._flying[future] = task
            future.add_done_callback(self._finished.put)

    def _outcome(self, task: SlideTask, future: Any) -> Outcome:
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        try:
            return future.result()
        except KilledWorker as err:
            return self._killed(task, err)
        except (FutureCancelledError, TimeoutError) as err:
            raise OutputError(
                f"the Dask scheduler was lost ({err}): what is done is kept; run the same command again to go on"
            ) from err
        except Exception as err:  # not the slide's: a worker without this software, a result that cannot travel
            reason = f"the worker could not do it ({type(err).__name__}: {err}); is the same version installed there?"
            return self._give_up(task, reason, "".join(traceback.format_exception(err)))
        finally:
            future.release()

    def _killed(self, task: SlideTask, err: Any) -> Outcome:
        """A worker died. Slides that it had not begun are innocent, and the attempt does not count."""
        lease = read_lease(self._folder.running_file(task.row))
        began = lease.get("worker") == err.last_worker.address
        if not began and not err.allowed_failures and task.spared < MOST_SPARED:
            return Outcome("may pass")
        events = self._pool.client.get_events(words.TOPIC)
        reason = explain(err, f"slide {task.row.slide_id}", self._pool.config)
        reason = reason or words.death(task.row.slide_id, err.last_worker, events, lease)
        if task.attempt + err.allowed_failures > self._request.config.retries:
            return self._give_up(task, reason)
        return Outcome("may pass", reason)

    def _give_up(self, task: SlideTask, reason: str, trace: str = "") -> Outcome:
        reason = f"{reason} (tried {task.attempt} times)" if task.attempt > 1 else reason
        with contextlib.suppress(OSError):
            self._folder.fail(task.row, reason, attempts=task.attempt, trace=trace)
        return Outcome("failed", reason)

    def _settle(self, task: SlideTask, outcome: Outcome) -> None:
        name, result = task.row.slide_id, self._result
        if outcome.ending == "done":
            result.done += 1
            self.say("done", name, seconds=outcome.seconds)
        elif outcome.ending == "may pass":
            self._again(task, outcome.reason)
        elif outcome.ending in ("in use", "stopped"):
            reason = outcome.reason or "its lease was taken away by somebody else"
            result.in_use[name] = reason
            self.say("in use", name, reason)
        else:
            result.failed[name] = outcome.reason
            self.say("failed", name, outcome.reason)

    def _again(self, task: SlideTask, reason: str) -> None:
        """Try a slide again: at once if nothing is known against it, else after a pause and by itself."""
        if not reason:
            self._later.append((0.0, replace(task, spared=task.spared + 1)))
            return
        pause = self._request.config.retry_wait_s * 2 ** (task.attempt - 1)
        self._later.append((time.monotonic() + pause, replace(task, attempt=task.attempt + 1, blocks=ALONE)))
        self.say("again", task.row.slide_id, f"{reason}; trying again in {pause:.0f} s")

    def _stop(self) -> None:
        """Take the leases of slides in work away, and give their workers time to keep the blocks they paint."""
        end = time.monotonic() + self._request.config.stop_s
        self._pool.client.cancel([future for future, task in self._flying.items() if not self._lease(task)])
        active = {future for future, task in self._flying.items() if self._lease(task)}
        while active and time.monotonic() < end:
            for task in self._flying.values():  # again and again: a worker may just have begun
                self._withdraw(task)
            with contextlib.suppress(queue.Empty):
                active.discard(self._finished.get(timeout=0.1))
        self._pool.client.cancel(list(self._flying))

    def _lease(self, task: SlideTask) -> Path | None:
        """The slide's lease, if a worker of this run holds it."""
        path = self._folder.running_file(task.row)
        return path if read_lease(path).get("scheduler") == self._scheduler else None

    def _withdraw(self, task: SlideTask) -> None:
        path = self._lease(task)
        if path is not None:
            path.unlink(missing_ok=True)
