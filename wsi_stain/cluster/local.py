"""Workers on this machine: one process for each GPU, or for every few processors."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from typing import Any

from wsi_stain.cluster.settings import Started
from wsi_stain.cluster.workers import processors
from wsi_stain.config.cluster import ClusterConfig


def start(config: ClusterConfig, name: str) -> Started:
    """A `SpecCluster` of nannies, each with one worker; a worker that dies is started again.

    `dask_cuda.LocalCUDACluster` does the same for GPUs, but demands another version of Dask than ours.
    """
    from distributed import Nanny, Scheduler
    from distributed.deploy.spec import SpecCluster

    gpus = visible_gpus()
    count = config.workers[1] if config.workers else len(gpus) or max(1, processors() // config.cores)
    options = {
        "nthreads": config.cores,
        "memory_limit": config.memory_bytes or 0,
        "dashboard_address": "127.0.0.1:0",
        "local_directory": config.local_directory,
        "silence_logs": logging.CRITICAL,
        "host": "127.0.0.1",
    }
    workers = {
        f"{name}-{i}": {"cls": Nanny, "options": options | {"env": environment(config, gpus, i)}} for i in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    quiet: Any = logging.CRITICAL  # declared as a bool, used as a level
    cluster = SpecCluster(scheduler=scheduler, silence_logs=quiet, name=name)
    cluster.worker_spec.update(workers)

    async def begin() -> None:
        await cluster._correct_state()

    # In the background, as Dask's own `scale` does: whoever is interrupted meanwhile has a cluster that can be closed.
    loop: Any = cluster.loop
    starting = asyncio.run_coroutine_threadsafe(begin(), loop.asyncio_loop)

    def failure() -> str | None:
        error = starting.exception() if starting.done() else None
        return f"the workers of this machine cannot start: {error}" if error else None

    return cluster, failure


def environment(config: ClusterConfig, gpus: list[str], index: int) -> dict[str, str]:
    """What a worker's process finds in its environment: its processors and its GPU.

    Nannies set OMP_NUM_THREADS to 1, for tasks that share a process; ours has the process to itself.
    """
    pinned = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
    return {"OMP_NUM_THREADS": str(config.cores)} | pinned


def visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES tells each GPU that this process may use."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:  # no driver: no need to wait for torch
        return []
    import torch

    # A process that was itself given some GPUs hands on those: CUDA numbers them anew in every process.
    names = [name for name in os.getenv("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (names or [str(i) for i in range(torch.cuda.device_count())])[: torch.cuda.device_count()]
