"""Threads, memory, limits, and the programs that wsi-stain works with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil

from wsi_stain.cluster.threads import processors
from wsi_stain.cluster.workers import Workers
from wsi_stain.doctor.finding import Finding
from wsi_stain.files.full_disk import gib

LITTLE_BYTES, TOO_LITTLE_BYTES = 4 << 30, 3 << 29
"""Free memory: a conversion takes 1.5 GiB with the default model."""
FEW_FILES = 1024
PATIENCE_S = 10
SLURM = ("sbatch", "squeue", "scancel", "sinfo")
QUPATH = ("/Applications", "/opt", "C:/Program Files", str(Path.home()))


def check_threads() -> Iterator[Finding]:
    """Whether the network can use all processors."""
    import torch

    have, used = processors(), torch.get_num_threads()
    detail = f"torch uses {used} of {have} processors"
    if 2 * used > have:
        yield Finding("threads", "PASS", detail)
    else:
        yield Finding("threads", "WARN", detail, "unset OMP_NUM_THREADS, or set it to the number of processors")


def check_memory() -> Iterator[Finding]:
    """Memory that is free now."""
    memory = psutil.virtual_memory()
    level = "FAIL" if memory.available < TOO_LITTLE_BYTES else "WARN" if memory.available < LITTLE_BYTES else "PASS"
    fix = "" if level == "PASS" else "end other programs, or use smaller tiles (--set grid.tile=256)"
    yield Finding("memory", level, f"{gib(memory.available)} of {gib(memory.total)} free", fix)


def check_open_files() -> Iterator[Finding]:
    """The limit of open files."""
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < FEW_FILES:
        yield Finding("open files", "WARN", f"at most {limit}", f"raise the limit: ulimit -n {FEW_FILES}")
    else:
        yield Finding("open files", "PASS", f"at most {limit}" if limit >= 0 else "no limit")


def check_tasks() -> Iterator[Finding]:
    """Dask runs tasks on threads of this process."""
    results: list[int] = []
    with Workers(2, None) as workers:
        workers.run(abs, [-1, -2, -3], results.append)
    if sorted(results) == [1, 2, 3]:
        yield Finding("Dask", "PASS", "runs tasks on threads")
    else:
        yield Finding("Dask", "FAIL", f"three tasks gave {results}", "reinstall distributed")


def check_slurm() -> Iterator[Finding]:
    """The commands of SLURM, if there are any."""
    found = [name for name in SLURM if shutil.which(name)]
    if not found:
        yield Finding("SLURM", "PASS", "not installed here; needed only for cohorts on a SLURM cluster")
        return
    if missing := [name for name in SLURM if name not in found]:
        fix = "install SLURM's client commands on this machine"
        yield Finding("SLURM", "WARN", f"{', '.join(missing)} not found", fix)
    elif not _answers("sinfo", "-h"):
        fix = "run this on a login node, or ask the administrator whether slurmctld runs"
        yield Finding("SLURM", "WARN", "sinfo does not answer", fix)
    elif find_spec("dask_jobqueue") is None:
        yield Finding("SLURM", "WARN", "dask-jobqueue is not installed", "pip install 'wsi-stain[cluster]'")
    else:
        yield Finding("SLURM", "PASS", "answers")


def check_others() -> Iterator[Finding]:
    """QuPath, which opens the outputs, and Java, which Bio-Formats needs."""
    places = [path for folder in QUPATH if Path(folder).is_dir() for path in Path(folder).glob("QuPath*")]
    where = str(places[0]) if places else shutil.which("QuPath")
    yield Finding("QuPath", "PASS", where or "not found here; outputs open in QuPath 0.4 and newer (qupath.github.io)")
    java = shutil.which("java")
    yield Finding("Java", "PASS", java or "not found; needed only for Bio-Formats (QuPath has its own)")


def _answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
