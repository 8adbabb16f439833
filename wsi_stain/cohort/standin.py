"""Stands in for `wsi_stain.cluster` until that is here: the same names, local processes and addresses only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_stain.errors import ConfigError
from wsi_stain.workers import PATIENCE, processors


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The keys of a cluster file that this knows."""

    scheduler: str | None = None
    workers: tuple[int, int] | None = None
    cores: int = 4
    memory: str | None = None
    logs: Path = Path("cluster-logs")


@contextmanager
def open_cluster(config: ClusterConfig, demand: Callable[[], int] = lambda: 0) -> Iterator[Any]:
    """A Dask client of local processes or of a scheduler."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
        if config.scheduler is not None:
            with _connected(config.scheduler) as client:
                yield client
            return
        with _local(config) as cluster, _connected(cluster) as client:
            yield client


def explain(error: BaseException, subject: str, config: ClusterConfig) -> str | None:
    """Nothing is known here."""
    return None


def is_retiring() -> bool:
    """Never, here."""
    return False


@contextmanager
def _connected(where: Any) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(where, set_as_default=False, timeout=PATIENCE)
    except (OSError, ValueError) as err:
        raise ConfigError(f"no Dask scheduler answers at {where!r}: {err}; give --scheduler an address") from err
    with client:
        yield client


def _local(config: ClusterConfig) -> Any:
    from dask.utils import parse_bytes
    from distributed import Nanny, Scheduler, SpecCluster

    options = {
        "nthreads": config.cores,
        "memory_limit": None if config.memory is None else parse_bytes(config.memory),
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
        "host": "127.0.0.1",
        "env": {"OMP_NUM_THREADS": str(config.cores)},
    }
    count = config.workers[1] if config.workers else max(1, processors() // config.cores)
    workers = {n: {"cls": Nanny, "options": options} for n in range(count)}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    quiet: Any = logging.CRITICAL
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=quiet)
