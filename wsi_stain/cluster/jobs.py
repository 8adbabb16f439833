"""Workers as jobs of SLURM, PBS, LSF or SGE, through dask-jobqueue; lost jobs are replaced."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from typing import Any

from wsi_stain.cluster import slurm
from wsi_stain.cluster.settings import Started, worker_environment
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.errors import ConfigError

CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
"""Class names in dask_jobqueue."""

NAMES = {
    "slurm": {"account": "account"},
    "pbs": {"account": "account", "resources": "resource_spec"},
    "lsf": {"account": "project"},
    "sge": {"account": "project", "resources": "resource_spec"},
}
"""Keys of the cluster file whose arguments in dask_jobqueue differ between batch systems."""

FEWEST, MOST = 0, 8
"""Default number of workers."""

PULSE_S = 2
"""Interval at which the number of workers is adapted, s."""

IDLE_PULSES = 15
"""Pulses without a task after which a worker ends its job; until then, a retried task can use it."""

PATIENCE_S = 120
"""Seconds after which a worker without a scheduler (this command was killed) ends its job."""


def start(config: ClusterConfig, name: str, demand: Callable[[], int]) -> Started:
    """Start a cluster that requests as many jobs as there are tasks; the second item returns why no worker can start.

    Raises:
        ConfigError: dask-jobqueue or the batch system is missing, or the batch system refuses the job.
    """
    from wsi_stain.cluster.keeper import Keeper

    job_cluster = cluster(config, name)
    try:
        _check(config, job_cluster)
        fewest, most = config.workers or (FEWEST, MOST)
        keeper = job_cluster.adapt(
            Adaptive=Keeper,
            demand=demand,
            minimum=max(1, fewest),
            maximum=most,
            interval=f"{PULSE_S}s",
            wait_count=IDLE_PULSES,
        )
    except BaseException:
        job_cluster.close()
        raise
    return job_cluster, lambda: keeper.failure


def cluster(config: ClusterConfig, name: str) -> Any:
    """The cluster object without jobs.

    Raises:
        ConfigError: dask-jobqueue is not installed, or the network interface is missing.
    """
    try:
        import dask_jobqueue
    except ImportError as err:
        raise ConfigError(
            f"class is {config.class_}, but the package dask-jobqueue is missing: pip install 'wsi-stain[cluster]'"
        ) from err
    try:
        return getattr(dask_jobqueue, CLASSES[config.class_])(name=name, **options(config, name))
    except (ValueError, RuntimeError) as err:  # from psutil, which lists the interfaces; Dask wraps its error
        if config.interface is None:
            raise
        raise ConfigError(f"interface is {config.interface!r}, but no scheduler can start on it here: {err}") from err


def options(config: ClusterConfig, name: str) -> dict[str, Any]:
    """Arguments of the dask-jobqueue class."""
    return {
        "cores": config.cores,
        "processes": 1,
        "memory": f"{config.memory_bytes} B",
        # Without a nanny the job is the worker: both end for the reason that the batch system reports.
        "nanny": False,
        "worker_extra_args": _worker_arguments(config),
        "death_timeout": PATIENCE_S,
        "local_directory": config.local_directory,
        "interface": config.interface,
        "python": config.python,
        "job_name": name,
        "log_directory": str(config.logs),
        "job_script_prologue": [*_exports(config), *config.prologue],
        "job_extra_directives": _directives(config),
        "scheduler_options": {"dashboard_address": ":0"},
        "queue": config.partition,
        "walltime": _walltime(config),
        "silence_logs": "error",
    } | {name: getattr(config, key) for key, name in NAMES[config.class_].items()}


def _exports(config: ClusterConfig) -> list[str]:
    return [f"export {key}={value}" for key, value in worker_environment(config.cores).items()]


def _worker_arguments(config: ClusterConfig) -> list[str]:
    lifetime = ["--lifetime", f"{config.lifetime_s}s", "--lifetime-stagger", f"{config.stagger_s}s"]
    return [*lifetime, "--no-dashboard", "--preload", "wsi_stain.cluster.retirement"]


def _directives(config: ClusterConfig) -> list[str]:
    gres = [f"--gres={config.gres}"] if config.gres else []
    return [*gres, *config.directives]


def _walltime(config: ClusterConfig) -> str:
    """LSF accepts only hours and minutes, and SGE no days."""
    hours, rest = divmod(config.walltime_s, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours:02}:{minutes:02}" if config.class_ == "lsf" else f"{hours:02}:{minutes:02}:{seconds:02}"


def _check(config: ClusterConfig, job_cluster: Any) -> None:
    """Raise ConfigError for a job that would never start."""
    command = job_cluster.job_cls.submit_command
    if shutil.which(shlex.split(command)[0]) is None:
        raise ConfigError(
            f"class is {config.class_}, but its command {command} is missing; run this on a machine that may submit "
            "jobs (a login node), or choose another --cluster"
        )
    if config.class_ == "slurm":
        slurm.check(job_cluster.job_script())
