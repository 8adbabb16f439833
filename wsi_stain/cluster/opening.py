"""`open_cluster`: from a configuration to a Dask client whose first worker has come."""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from wsi_stain.cluster.settings import SETTINGS, Started
from wsi_stain.cluster.workers import connect
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

PULSE_S = 0.2
"""How often a wait for the first worker looks."""


@contextmanager
def open_cluster(config: ClusterConfig, demand: Callable[[], int] = lambda: 0) -> Generator[Client]:
    """Workers as `config` says; they and their jobs end with the context, those of another scheduler stay.

    Returns when the first worker has come, so that an environment that does not work on the nodes is an error here and
    not a silence later. Waiting in a queue may take hours; further workers come and go with the tasks there are.

    Args:
        config: what starts the workers, and how many.
        demand: how many workers could be used now, whatever Dask has been given so far; asked every two seconds. A
            caller that hands tasks out little by little says here how many are left.

    Raises:
        ConfigError: the batch system is not here or refuses the job, a package is missing, no scheduler answers, or
            the first job ended before its worker came.
    """
    from dask import config as dask_config

    name = f"wsi-stain-{uuid.uuid4().hex[:8]}"
    with dask_config.set(SETTINGS), warnings.catch_warnings(), ExitStack() as stack:
        # Without a network Dask cannot find out this machine's address, says so, and works all the same.
        warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
        if config.scheduler is not None:
            yield stack.enter_context(connect(config.scheduler))
            return
        cluster, failure = _started(config, name, demand)
        stack.enter_context(cluster)
        client = stack.enter_context(connect(cluster))
        _await_first(client, failure)
        yield client


def _started(config: ClusterConfig, name: str, demand: Callable[[], int]) -> Started:
    """Dispatch by the class; its packages are imported only here."""
    match config.class_:
        case "local":
            from wsi_stain.cluster import local

            return local.start(config, name)
        case "kubernetes":
            from wsi_stain.cluster import kubernetes

            return kubernetes.start(config, name)
        case _:
            from wsi_stain.cluster import jobs

            return jobs.start(config, name, demand)


def _await_first(client: Client, failure: Callable[[], str | None]) -> None:
    """Until one worker is there."""
    start = told = time.monotonic()
    while not client.nthreads():
        if reason := failure():
            raise ConfigError(reason)
        now = time.monotonic()
        if now - told > 60:
            told = now
            logger.info("no worker has come for %.0f min: its job waits in the queue", (now - start) / 60)
        time.sleep(PULSE_S)
