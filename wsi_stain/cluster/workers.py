"""Workers for blocks: this thread, threads of this process, or a Dask cluster.

All share the method `map`. Only coordinates are sent: the function gets an item and writes its pixels to the canvas.
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
"""Default limit: reading, blending and encoding take about 150 MiB per thread; fewer than eight saturate a device."""

PATIENCE = "10s"
"""Timeout for an answer of a scheduler."""

AHEAD = 3
"""Tasks per thread that are submitted in advance; the rest wait here."""


class Workers(Protocol):
    """Context manager that applies a function to items."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None: ...

    def map(self, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results as they finish, in any order; the first exception is raised and ends the rest."""
        ...


class SerialWorkers:
    """Runs items in the calling thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        return None

    def map(self, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of the items."""
        return map(func, items)


class ThreadWorkers:
    """Runs items in threads; without Dask, an identity conversion of 0.6 gigapixels takes a seventh less CPU time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, func: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results as they finish; as many tasks run as there are threads."""
        waiting = iter(items)
        running: set[Future[R]] = set()

        def submit(count: int) -> None:
            running.update(self._pool.submit(func, item) for item in islice(waiting, count))

        try:
            submit(self._threads + 1)  # one task waits, so that no thread idles
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
    """Runs items on the workers of a Dask scheduler.

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
        """Results as they finish; a few tasks per thread are submitted at a time."""
        from distributed import as_completed

        waiting = iter(items)
        submitted = as_completed(loop=self._client.loop)
        running = set()

        def submit(count: int) -> None:
            for item in islice(waiting, count):
                # Dask would merge equal calls into one task, and split a list: submit it as one item.
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
        """Results of `func` on each worker; the first exception is raised.

        Raises:
            ConfigError: no worker connects to the scheduler in time.
        """
        from distributed import TimeoutError as NoWorker

        try:
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except NoWorker as err:
            raise ConfigError(
                f"the scheduler at {self._scheduler!r} has no worker after {PATIENCE}, so the fastest precision is "
                "unknown; start its workers, or choose with --precision"
            ) from err
        return list(self._client.run(func).values())


def ask(scheduler: str, func: Callable[[], R]) -> list[R]:
    """Results of `func` on each worker of the scheduler at this address.

    Raises:
        ConfigError: the scheduler does not answer or has no worker yet.
    """
    with DaskWorkers(scheduler) as workers:
        return workers.everywhere(func)


def connect(target: Any) -> Any:
    """A `distributed.Client` of a cluster object, or of the scheduler at an address.

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


def choose(workers: int | None, scheduler: str | None) -> Workers:
    """The requested workers: None is one thread per processor (at most 8), 0 the calling thread.

    Raises:
        ConfigError: the number is negative.
    """
    if scheduler is not None:
        return DaskWorkers(scheduler)
    if workers is None:
        workers = min(MOST_THREADS, processors())
    if workers < 0:
        raise ConfigError(f"--workers is {workers}: it must be 0 (the calling thread) or more")
    return ThreadWorkers(workers) if workers else SerialWorkers()


def thread_count(workers: int | None) -> int:
    """Number of threads for `--workers`: None is one per processor, at most 8; 0 is the calling thread."""
    return min(MOST_THREADS, processors()) if workers is None else workers


def processors() -> int:
    """Number of processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
