"""Runs a function over items as Dask tasks: on threads of this process, or on the workers of a Dask scheduler.

    graph = {key: Task(key, func, item)}     the same, whoever runs it
    threads        dask.local.get_async over a thread pool; no scheduler process, microseconds per task
    scheduler      distributed.Client.get, with the tasks as futures

Only coordinates are sent: the function gets an item, writes its pixels to the canvas, and returns a small report.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wsi_stain.cluster.threads import thread_count
from wsi_stain.errors import ConfigError, WorkersLost

if TYPE_CHECKING:
    from dask.task_spec import Task

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = "10s"
"""Timeout for an answer of a scheduler."""

AHEAD = 3
"""Tasks per thread that a scheduler gets in advance; the rest wait here."""

REFRESH_S = 2.0
"""Time after which the threads of a scheduler are counted again: workers join and leave."""

PER_THREAD = 128
"""Tasks per thread in one graph of the thread scheduler.

Dask keeps about 2 kB per task and the results of a whole graph, so a graph of all blocks would grow with the slide.
Between two graphs, each thread waits for half a block on average: 0.4 % of the time.
"""


class Workers:
    """Runs functions over items; a context manager.

        with Workers(2) as workers:
            workers.run(stain, blocks, print)

    Args:
        threads: of this process; 0 is the calling thread, None one per processor, at most 8.
        scheduler: address of a running Dask scheduler to use instead, whose workers see the same files.

    Raises:
        ConfigError: the number of threads is negative.
    """

    def __init__(self, threads: int | None = None, scheduler: str | None = None) -> None:
        self._threads, self._scheduler = thread_count() if threads is None else threads, scheduler
        self._pool: ThreadPoolExecutor | None = None
        self._client: Any = None
        if self._threads < 0:
            raise ConfigError(f"--workers is {threads}: it must be 0 (the calling thread) or more")

    def __enter__(self) -> Self:
        if self._scheduler is not None:
            self._client = connect(self._scheduler)
        elif self._threads:
            self._pool = ThreadPoolExecutor(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, func: Callable[[T], R], items: Iterable[T], on_result: Callable[[R], object]) -> None:
        """Apply `func` to every item; tasks start in the order of the items and end in any order.

        Items are taken as they are needed, and the results of at most `PER_THREAD` tasks per thread are kept.

        Args:
            func: of a module, since a scheduler sends it to other processes.
            items: its arguments.
            on_result: called in this thread with each result as it finishes. The first exception, its own or one of
                `func`, is raised and ends the rest; tasks that have started are not stopped.
        """
        tasks = _tasks(func, items)
        if self._client is not None:
            _on_scheduler(self._client, tasks, on_result)
            return
        while graph := dict(islice(tasks, PER_THREAD * max(1, self._threads))):
            self._on_threads(graph, on_result)

    def _on_threads(self, graph: Mapping[Any, Task], on_result: Callable[[Any], object]) -> None:
        from dask.local import get_async, get_sync

        def in_order(_: object, state: dict[str, Any]) -> None:
            # `ready` is a stack. Dask orders independent tasks by their names, but blocks share tiles with neighbours.
            state["ready"][:] = reversed(graph)

        def done(_key: object, result: Any, *_: object) -> None:
            on_result(result)

        # One task more than threads: no thread waits for this one.
        get = get_sync if self._pool is None else partial(get_async, self._pool.submit, self._threads + 1)
        # The last three are set so that a user's configuration of Dask does not change them.
        get(
            graph,
            list(graph),
            callbacks=[(None, in_order, None, done, None)],
            chunksize=1,
            cache={},
            rerun_exceptions_locally=False,
        )


def _tasks(func: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[Any, Task]]:
    """A task for each item, with a key that is used only once: Dask merges tasks of equal keys."""
    from dask.task_spec import Task

    name = f"{getattr(func, 'func', func).__name__}-{uuid.uuid4().hex}"
    for number, item in enumerate(items):
        yield (name, number), Task((name, number), partial(func, item))


def _on_scheduler(client: Any, tasks: Iterator[tuple[Any, Task]], on_result: Callable[[Any], object]) -> None:
    """Keep a few tasks per thread on the scheduler until all are done.

    Raises:
        WorkersLost: a task was on too many workers that died, or the scheduler was lost.
    """
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    finished = as_completed(loop=client.loop)
    running: set[Any] = set()

    capacity, counted_at = 0, -REFRESH_S

    def submit() -> None:
        nonlocal capacity, counted_at
        if time.monotonic() - counted_at >= REFRESH_S:
            capacity, counted_at = AHEAD * max(1, sum(client.nthreads().values())), time.monotonic()
        if graph := dict(islice(tasks, max(0, capacity - len(running)))):
            futures = client.get(graph, list(graph), sync=False)
            running.update(futures)
            finished.update(futures)

    try:
        submit()
        for future in finished:
            running.discard(future)
            result = future.result()
            submit()
            on_result(result)
    except KilledWorker as err:
        died = f"{err.allowed_failures + 1} workers died while they had the same task"
        raise WorkersLost(
            f"{died}, the last one at {err.last_worker.address}: their memory may be too small, see their logs; re-run "
            "the same command to resume"
        ) from err
    except FutureCancelledError as err:
        raise WorkersLost(
            f"the scheduler no longer has the tasks ({err.reason}); re-run the same command to resume"
        ) from err
    finally:
        if running:
            client.cancel(list(running))


def ask(scheduler: str, func: Callable[[], R]) -> list[R]:
    """Results of `func` on each worker of the scheduler at this address; the first exception is raised.

    Raises:
        ConfigError: the scheduler does not answer or has no worker yet.
    """
    from distributed import TimeoutError as NoWorker

    with connect(scheduler) as client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except NoWorker as err:
            raise ConfigError(
                f"the scheduler at {scheduler!r} has no worker after {PATIENCE}, so the fastest precision is unknown; "
                "start its workers, or choose with --precision"
            ) from err
        return list(client.run(func).values())


def connect(target: Any) -> Any:
    """A `distributed.Client` of a Dask cluster object, or of the scheduler at an address.

    Raises:
        ConfigError: the scheduler does not answer.
    """
    from distributed import Client

    try:
        return Client(target, set_as_default=False, timeout=PATIENCE)
    except (OSError, ValueError) as err:
        raise ConfigError(
            f"no Dask scheduler answers at {target!r}: {err}; pass --scheduler the address that "
            "`dask scheduler` printed, for example tcp://host:8786"
        ) from err
