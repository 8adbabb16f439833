"""Workers on this machine: one process for each GPU, or for every few processors."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from typing import Any

from wsi_stain.cluster.settings import Started
from wsi_stain.cluster.threads import processors
from wsi_stain.config.cluster import ClusterConfig


def start(config: ClusterConfig, name: str) -> Started:
    """Start a `SpecCluster` of nannies, each with one worker; dead workers are restarted.

    `dask_cuda.LocalCUDACluster` does the same for GPUs, but requires a different version of Dask.
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
        await cluster

    # Start in the background, as Dask's `scale` does, so that an interrupted caller has a cluster to close.
    loop: Any = cluster.loop
    starting = asyncio.run_coroutine_threadsafe(begin(), loop.asyncio_loop)

    def failure() -> str | None:
        error = starting.exception() if starting.done() else None
        return f"the workers of this machine cannot start: {error}" if error else None

    return cluster, failure


def environment(config: ClusterConfig, gpus: list[str], index: int) -> dict[str, str]:
    """Environment of a worker process: its processors and its GPU.

    Nannies set OMP_NUM_THREADS to 1, for tasks that share a process; here one task uses the whole process.
    """
    pinned = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
    return {"OMP_NUM_THREADS": str(config.cores)} | pinned


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as named in CUDA_VISIBLE_DEVICES."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:  # no driver: skip the slow import of torch
        return []
    import torch

    # Pass on the names if this process is limited to some GPUs: CUDA renumbers devices in every process.
    names = [name for name in os.getenv("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (names or [str(i) for i in range(torch.cuda.device_count())])[: torch.cuda.device_count()]
