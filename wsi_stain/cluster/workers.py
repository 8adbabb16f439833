"""Where blocks run: in this thread, in threads of this process, or on a Dask cluster.

All know one verb. Only coordinates travel: the function gets an item and leaves its pixels on the canvas.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from wsi_stain.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")

MOST_THREADS = 8
"""Reading, blending and encoding take about 150 MiB per thread; one device is busy long before eight feed it."""

PATIENCE = "10s"
"""How long a scheduler may take to answer."""

AHEAD = 3
"""Tasks per thread that are handed out before they are needed; the rest wait here and cost nothing."""


class Workers(Protocol):
    """Something that applies a function to items; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None: ...

    def map(self, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results as they finish, in any order; the first exception is raised and ends the rest."""
        ...


class SerialWorkers:
    """The calling thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        return None

    def map(self, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of the items."""
        return map(func, items)


class ThreadWorkers:
    """Threads of this process, without Dask: an identity conversion of 0.6 gigapixels takes a seventh less CPU time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results as they finish; as many tasks as threads are under way."""
        waiting = iter(items)
        running: set[Future[R]] = set()

        def submit(count: int) -> None:
            running.update(self._pool.submit(func, item) for item in islice(waiting, count))

        try:
            submit(self._threads + 1)  # one waits, so that no thread does
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    running.discard(future)
                    result = future.result()
                    submit(1)
                    yield result
        finally:
            for future in running:
                future.cancel()


class DaskWorkers:
    """Dask futures, on the workers of a scheduler.

    Args:
        scheduler: address of a running Dask scheduler whose workers see the same files.

        with DaskWorkers("tcp://host:8786") as workers:
            for result in workers.map(func, items):
                ...
    """

    def __init__(self, scheduler: str) -> None:
        self._scheduler = scheduler
        self._client: Any = None

    def __enter__(self) -> Self:
        self._client = connect(self._scheduler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def map(self, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results as they finish; a few tasks per thread are handed out at a time."""
        from distributed import as_completed

        waiting = iter(items)
        submitted = as_completed(loop=self._client.loop)
        running = set()

        def submit(count: int) -> None:
            for item in islice(waiting, count):
                # Dask would take an equal call for the same task, and spread a list: hand it over as one plain item.
                future = self._client.submit(func, item, pure=False)
                running.add(future)
                submitted.add(future)

        try:
            submit(AHEAD * max(1, sum(self._client.nthreads().values())))
            for future in submitted:
                running.discard(future)
                result = future.result()
                submit(1)
                yield result
        finally:
            if running:
                self._client.cancel(list(running))

    def everywhere(self, func: Callable[[], R]) -> list[R]:
        """What `func` returns on each worker; the first exception is raised.

        Raises:
            ConfigError: the scheduler has no worker, and none comes in time.
        """
        from distributed import TimeoutError as NobodyCame

        try:
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except NobodyCame as err:
            raise ConfigError(
                f"the scheduler at {self._scheduler!r} has no worker after {PATIENCE}, so there is nobody to ask which "
                "precision is fastest: start its workers, or choose with --precision"
            ) from err
        return list(self._client.run(func).values())


def ask(scheduler: str, func: Callable[[], R]) -> list[R]:
    """What `func` returns on each worker of the scheduler at that address.

    Raises:
        ConfigError: no scheduler there, or no worker yet.
    """
    with DaskWorkers(scheduler) as workers:
        return workers.everywhere(func)


def connect(target: Any) -> Any:
    """A `distributed.Client` of a cluster object, or of the scheduler at an address.

    Raises:
        ConfigError: nobody answers.
    """
    from distributed import Client

    try:
        return Client(target, set_as_default=False, timeout=PATIENCE)
    except (OSError, ValueError) as err:
        raise ConfigError(
            f"no Dask scheduler answers at {target!r}: {err}; give --scheduler the address that "
            "`dask scheduler` printed, for example tcp://host:8786"
        ) from err


def choose(workers: int | None, scheduler: str | None) -> Workers:
    """The workers that a user asked for: None is one per processor (at most 8), 0 the calling thread.

    Raises:
        ConfigError: a negative number.
    """
    if scheduler is not None:
        return DaskWorkers(scheduler)
    if workers is None:
        workers = min(MOST_THREADS, processors())
    if workers < 0:
        raise ConfigError(f"--workers is {workers}: it must be 0 (the calling thread) or more")
    return ThreadWorkers(workers) if workers else SerialWorkers()


def processors() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
