"""Workers as jobs of SLURM, PBS, LSF or SGE, through dask-jobqueue; jobs that were lost are replaced."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from wsi_stain.cluster.settings import Started, worker_environment
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.errors import ConfigError

CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
"""Names in dask_jobqueue."""

FEWEST, MOST = 0, 8
"""Workers where the configuration does not say."""

PULSE_S = 2
"""How often the number of workers is thought over."""

IDLE_PULSES = 15
"""A worker without a task for so many pulses gives its job back; a task that was lost finds it still there."""

PATIENCE_S = 120
"""A worker that finds no scheduler, because this command was killed, ends its job after so many seconds."""


def start(config: ClusterConfig, name: str, demand: Callable[[], int]) -> Started:
    """The cluster object, and what says why no worker can come: it asks for as many jobs as there are tasks.

    Raises:
        ConfigError: dask-jobqueue or the batch system is not here, or the batch system refuses the job.
    """
    from wsi_stain.cluster.keeper import Keeper

    made = cluster(config, name)
    try:
        _check(config, made)
        fewest, most = config.workers or (FEWEST, MOST)
        keeper = made.adapt(
            Adaptive=Keeper,
            demand=demand,
            minimum=max(1, fewest),
            maximum=most,
            interval=f"{PULSE_S}s",
            wait_count=IDLE_PULSES,
        )
    except BaseException:
        made.close()
        raise
    return made, lambda: keeper.failure


def cluster(config: ClusterConfig, name: str) -> Any:
    """The cluster object without any job.

    Raises:
        ConfigError: dask-jobqueue is not installed, or the interface is not there.
    """
    try:
        import dask_jobqueue
    except ImportError as err:
        raise ConfigError(
            f"class is {config.class_} and the package dask-jobqueue is missing: pip install 'wsi-stain[cluster]'"
        ) from err
    try:
        return getattr(dask_jobqueue, CLASSES[config.class_])(name=name, **options(config, name))
    except (ValueError, RuntimeError) as err:  # psutil knows the interfaces, and Dask wraps what it says
        if config.interface is None:
            raise
        raise ConfigError(f"interface is {config.interface!r}, on which no scheduler can start here: {err}") from err


def options(config: ClusterConfig, name: str) -> dict[str, Any]:
    """Arguments of dask-jobqueue's class."""
    return {
        "cores": config.cores,
        "processes": 1,
        "memory": f"{config.memory_bytes} B",
        # The job is the worker: what the batch system says of the job's end is then the reason of the worker's.
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
    } | _own_options(config)


def _exports(config: ClusterConfig) -> list[str]:
    return [f"export {key}={value}" for key, value in worker_environment(config.cores).items()]


def _worker_arguments(config: ClusterConfig) -> list[str]:
    lifetime = ["--lifetime", f"{config.lifetime_s}s", "--lifetime-stagger", f"{config.stagger_s}s"]
    return [*lifetime, "--no-dashboard", "--preload", "wsi_stain.cluster.retirement"]


def _directives(config: ClusterConfig) -> list[str]:
    gres = [f"--gres={config.gres}"] if config.gres else []
    return [*gres, *config.directives]


def _walltime(config: ClusterConfig) -> str:
    """LSF knows hours and minutes only, and SGE no days."""
    hours, rest = divmod(config.walltime_s, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours:02}:{minutes:02}" if config.class_ == "lsf" else f"{hours:02}:{minutes:02}:{seconds:02}"


def _own_options(config: ClusterConfig) -> dict[str, Any]:
    """What each batch system calls by a name of its own."""
    match config.class_:
        case "slurm":
            return {"account": config.account}
        case "pbs":
            chosen = f"select=1:ncpus={config.cores}:mem={(config.memory_bytes or 0) >> 20}mb"
            return {"resource_spec": config.resources or chosen, "account": config.account}
        case "lsf":
            return {"ncpus": config.cores, "mem": config.memory_bytes, "project": config.account}
        case _:
            # A parallel environment's name is the site's own: it goes into `directives`.
            return {"resource_spec": config.resources, "project": config.account}


def _check(config: ClusterConfig, made: Any) -> None:
    """Refuse here what would else be a job that never comes."""
    command = made.job_cls.submit_command
    if shutil.which(shlex.split(command)[0]) is None:
        raise ConfigError(
            f"class is {config.class_} and its command {command} is not here: run this on a machine that may submit "
            "jobs (a login node), or choose another --cluster"
        )
    if config.class_ == "slurm":
        _ask_slurm(config, made.job_script())


def _ask_slurm(config: ClusterConfig, script: str) -> None:
    """SLURM says whether it would take the job, without taking it."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        said = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False)
    if said.returncode:
        words = " ".join(said.stderr.replace("sbatch: error:", "").replace("allocation failure:", "").split())
        raise ConfigError(
            f"SLURM refuses the workers' job: {words}; compare partition, account, gres, cores, memory and walltime of "
            "the cluster file with what `sinfo` and `scontrol show partition` say"
        )
