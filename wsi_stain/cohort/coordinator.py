"""Submits the slides of a cohort to the workers, and handles their outcomes: done, failed, or to be tried again.

All state is also in the files of the folder, since this process may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import math
import queue
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi_stain.cluster import explain
from wsi_stain.cohort import worker_loss
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.lease import read_lease
from wsi_stain.cohort.pool import Pool
from wsi_stain.cohort.progress import CohortResult, Event, EventKind
from wsi_stain.cohort.request import CohortRequest, Row
from wsi_stain.cohort.summary import write_summary
from wsi_stain.cohort.task import Outcome, SlideTask, convert_slide
from wsi_stain.errors import OutputError
from wsi_stain.files import lock

WORK_AHEAD = 1.5
"""Submitted work as a multiple of what the workers can run at once; the rest waits here for free workers."""
LEAST_SUBMITTED = 8
"""Smallest number of submitted slides, used when there are few or no workers yet."""
SPREAD_AT_ONCE = 2
"""Split slides in progress at once: while one is assembled, the blocks of the other keep the workers busy."""
MOST_SPARED = 10
"""Limit of lost workers that do not count as an attempt of a slide, since its conversion had not started."""
TICK_S = 0.5
SUMMARY_EVERY_S = 30.0
WHOLE_PROCESS = 1 << 30
"""Block count set for a slide whose worker died, so that it gets a whole process."""


class Coordinator:
    """Submits slides and handles their outcomes."""

    def __init__(
        self, request: CohortRequest, folder: Folder, result: CohortResult, on_event: Callable[[Event], None]
    ) -> None:
        self._request, self._folder, self._result, self._on_event = request, folder, result, on_event
        self._flying: dict[Any, SlideTask] = {}
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._later: list[tuple[float, SlideTask]] = []
        self._begun: list[Row] = []
        self._waiting: deque[SlideTask] = deque()
        self._next_summary = time.monotonic() + SUMMARY_EVERY_S

    def say(self, kind: EventKind, slide_id: str = "", text: str = "", seconds: float = 0.0) -> None:
        """Report an event."""
        r = self._result
        self._on_event(Event(kind, slide_id, text, r.done, len(r.failed), r.total, seconds))

    def convert(self, rows: list[Row], workers: Pool) -> None:
        """Convert the rows, largest first, so that no large slide runs alone at the end."""
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

    def refuse(self, row: Row, reason: str) -> None:
        """Record a row that cannot be converted as failed."""
        self._folder.fail(row, reason)
        self._result.failed[row.slide_id] = reason
        self.say("failed", row.slide_id, reason)

    def demand(self) -> int:
        """Number of unfinished slides; a cluster starts at most this many workers."""
        return len(self._waiting) + len(self._later) + len(self._flying)

    def tidy(self) -> None:
        """Remove locks of ended workers on this host, since the next run may be on another host."""
        for row in self._begun:
            lock.remove_dead(self._folder.running_file(row))
            if self._folder.spool_lock(row).parent.exists():
                lock.remove_dead(self._folder.spool_lock(row))

    def summarise(self) -> None:
        """Write the summary so far; limited to a twentieth of the run time for any number of slides."""
        start = time.monotonic()
        try:
            write_summary(self._request.folder, self._folder)
        except OSError as err:  # a full disk: the summary can be rebuilt from the files of the slides
            self.say("warning", text=f"the summary could not be written: {err.strerror}; free some space and re-run")
        took = time.monotonic() - start
        self._next_summary = time.monotonic() + max(SUMMARY_EVERY_S, 20 * took)

    def _task(self, row: Row, spread: str | None = None) -> SlideTask:
        blocks = max(1, math.ceil(row.pixels / self._request.config.convert.grid.block**2))
        return SlideTask(self._request, row, blocks, scheduler=self._scheduler, spread=spread)

    def _capacity(self) -> float:
        return max(LEAST_SUBMITTED, WORK_AHEAD * sum(self._pool.threads))

    def _weight(self, task: SlideTask) -> int:
        """Threads that a slide uses."""
        return 1 if task.spread else min(task.blocks, max(self._pool.threads, default=1))

    def _all(self, tasks: list[SlideTask], capacity: Callable[[], float]) -> None:
        """Submit the tasks, handle outcomes, and retry transient failures until all tasks are finished."""
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
                f"the Dask scheduler was lost ({err}); finished work is kept; re-run the same command to resume"
            ) from err
        except Exception as err:  # not the slide: a worker without wsi-stain, or an unserialisable result
            reason = f"the worker failed ({type(err).__name__}: {err}); check that it has the same version installed"
            return self._give_up(task, reason, "".join(traceback.format_exception(err)))
        finally:
            future.release()

    def _killed(self, task: SlideTask, err: Any) -> Outcome:
        """Handle the death of a worker; slides whose conversion had not started do not lose an attempt."""
        lease = read_lease(self._folder.running_file(task.row))
        is_begun = lease.get("worker") == err.last_worker.address
        if not is_begun and not err.allowed_failures and task.spared < MOST_SPARED:
            return Outcome("may pass")
        events = self._pool.client.get_events(worker_loss.TOPIC)
        reason = explain(err, f"slide {task.row.slide_id}", self._pool.config)
        reason = reason or worker_loss.death(task.row.slide_id, err.last_worker, events, lease)
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
            self._retry(task, outcome.reason)
        elif outcome.ending in ("in use", "stopped"):
            reason = outcome.reason or "another run took it over; see wsi-stain cohort status"
            result.in_use[name] = reason
            self.say("in use", name, reason)
        else:
            result.failed[name] = outcome.reason
            self.say("failed", name, outcome.reason)

    def _retry(self, task: SlideTask, reason: str) -> None:
        """Retry a slide: at once if it did not cause the failure, else after a pause and in a process of its own."""
        if not reason:
            self._later.append((0.0, replace(task, spared=task.spared + 1)))
            return
        pause = self._request.config.retry_wait_s * 2 ** (task.attempt - 1)
        self._later.append((time.monotonic() + pause, replace(task, attempt=task.attempt + 1, blocks=WHOLE_PROCESS)))
        self.say("retry", task.row.slide_id, f"{reason}; retrying in {pause:.0f} s")

    def _stop(self) -> None:
        """Revoke the leases of slides in progress, and give their workers time to save the current blocks."""
        end = time.monotonic() + self._request.config.stop_s
        self._pool.client.cancel([future for future, task in self._flying.items() if not self._lease(task)])
        active = {future for future, task in self._flying.items() if self._lease(task)}
        while active and time.monotonic() < end:
            for task in self._flying.values():  # repeated, since a worker may just have started
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
