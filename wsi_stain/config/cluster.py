"""`configs/cluster/*.yaml`: how the workers of a cohort are started, their number and their resources."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from wsi_stain.config.ranges import Count, NonNegativeInt, Range, check_ranges
from wsi_stain.errors import ConfigError

Kind = Literal["local", "slurm", "pbs", "lsf", "sge", "kubernetes"]

BATCH = ("slurm", "pbs", "lsf", "sge")
"""Kinds whose workers are jobs with a walltime."""

UNITS = {"": 1} | {
    unit: base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in ((letter, 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}
"""Bytes of a unit; a single letter has the meaning of SLURM, the others follow IEC 80000-13."""


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """Settings of pods only."""

    image: str = ""
    """Container image with wsi-stain, for example built from `pipelines/container/Containerfile`."""
    namespace: str | None = None
    """Namespace of the pods; by default that of the kubectl context."""
    claims: tuple[str, ...] = ()
    """`claim:/path`: persistent volume claims with the slides and for the outputs, mounted in every pod. The command
    itself must run with the same paths, in a pod of that namespace."""
    gpus: Annotated[int, Range(0, 1)] = 0
    """GPUs (nvidia.com/gpu) of a worker, which uses at most one; raise `workers` for more."""

    def __post_init__(self) -> None:
        check_ranges(self)
        invalid = [claim for claim in self.claims if not re.fullmatch(r"[a-z0-9.-]+:/.*", claim)]
        if invalid:
            raise ConfigError(f"kubernetes.claims has {invalid[0]!r}: write claim:/path, for example slides:/data")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """How the workers of a cohort are started; keys that a batch system does not need may be omitted."""

    class_: Kind = "local"
    """What starts workers: `local` (processes of this machine), a batch system, or `kubernetes`."""
    scheduler: str | None = None
    """Address of a running Dask scheduler; its workers are used, and none are started."""
    workers: tuple[NonNegativeInt, Count] | None = None
    """Minimum and maximum number of workers; within them, one per remaining slide. By default 0 to 8; on this machine
    one per GPU or, without GPUs, one per `cores` processors."""
    cores: Count = 4
    """Processors of a worker: as many threads read, blend and encode for one device."""
    memory: str | None = None
    """Memory of a worker, for example `16GB`. By default 16GB on clusters, and no limit on this machine."""
    walltime: str = "08:00:00"
    """Time limit of a job, [D-]HH:MM:SS. A slide that takes longer resumes in the next job."""
    retire_s: NonNegativeInt = 600
    """Seconds before the walltime at which a worker retires: time to finish a block, and a margin for clock errors."""
    stagger_s: NonNegativeInt = 60
    """Workers retire up to this many seconds earlier or later, so that jobs started together do not end together."""
    partition: str | None = None
    """Partition of SLURM, queue of PBS, LSF and SGE; the site's default if not given."""
    account: str | None = None
    """Account to charge: account of SLURM and PBS, project of LSF and SGE."""
    gres: str | None = None
    """SLURM's --gres, for example `gpu:1` or `gpu:a100:1`: a worker uses one GPU."""
    resources: str | None = None
    """PBS's select or SGE's -l, replacing the one made of `cores` and `memory`; for sites that request GPUs in it."""
    directives: tuple[str, ...] = ()
    """Further options of the job script, for example `--qos=long`."""
    prologue: tuple[str, ...] = ()
    """Shell lines to run before a worker starts, for example `module load cuda` or `source /path/venv/bin/activate`."""
    interface: str | None = None
    """Network interface that the nodes share, for example `ib0`; by default the one with the default route."""
    python: str | None = None
    """Python interpreter on the nodes; by default the current one."""
    local_directory: str | None = None
    """Folder of the node for Dask's own files; by default its temporary folder. Slides are never stored there."""
    logs: Path = Path("cluster-logs")
    """Folder for the output of the workers, one file per job; the reason for a killed worker is read from it."""
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_numbers(self)
        if self.scheduler is not None and not re.fullmatch(r"[a-z+]+://.+", self.scheduler):
            raise ConfigError(f"scheduler is {self.scheduler!r}: it must be an address, for example tcp://host:8786")
        if self.gres is not None:
            _check_gres(self)
        if self.resources is not None and self.class_ not in ("pbs", "sge"):
            raise ConfigError(
                f"resources is {self.resources!r}, which only pbs and sge support, "
                f"but class is {self.class_}; remove it"
            )
        if self.class_ == "kubernetes" and not self.kubernetes.image:
            raise ConfigError(
                "class is kubernetes but kubernetes.image is empty; set it to a container image with wsi-stain"
            )

    @property
    def is_batch(self) -> bool:
        """Whether workers are jobs with a walltime."""
        return self.scheduler is None and self.class_ in BATCH

    @property
    def memory_bytes(self) -> int | None:
        """The memory of a worker in bytes; `None` means no limit."""
        text = self.memory or (None if self.class_ == "local" else "16GB")
        return None if text is None else _bytes(text)

    @property
    def walltime_s(self) -> int:
        """The walltime in seconds."""
        return _seconds(self.walltime)

    @property
    def lifetime_s(self) -> int:
        """Seconds after which a worker retires, on average: even the latest leaves `retire_s` before the walltime."""
        return self.walltime_s - self.retire_s - self.stagger_s


def _check_numbers(config: ClusterConfig) -> None:
    if config.workers is not None and config.workers[0] > config.workers[1]:
        raise ConfigError(f"workers is {list(config.workers)}: write the minimum and the maximum, for example [0, 8]")
    if config.memory is not None:
        _bytes(config.memory)
    least = config.retire_s + 2 * config.stagger_s
    if config.walltime_s <= least:
        raise ConfigError(
            f"walltime is {config.walltime}, which is not above retire_s + 2 × stagger_s = {least} s: workers would "
            "retire before they start; raise walltime or lower retire_s"
        )


def _check_gres(config: ClusterConfig) -> None:
    if config.class_ != "slurm":
        others = "`resources` (pbs, sge), `directives` (lsf) or kubernetes.gpus"
        raise ConfigError(
            f"gres is {config.gres!r}, which only slurm supports, but class is {config.class_}; "
            f"request GPUs with {others}"
        )
    count = re.search(r"\bgpu(?::[^:,]+)?:(\d+)\b", config.gres or "")
    if count and int(count[1]) > 1:
        raise ConfigError(
            f"gres is {config.gres!r}: a worker uses one GPU; write gpu:1 and raise `workers`; each gets one GPU"
        )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT](?:i?B)?)?", text)
    if not match or not float(match[1]):
        raise ConfigError(f"memory is {text!r}: write a size with its unit, for example 16GB or 16GiB")
    return int(float(match[1]) * UNITS[match[2] or ""])


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if not match:
        raise ConfigError(f"walltime is {text!r}: write HH:MM:SS or D-HH:MM:SS in quotes, for example '08:00:00'")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
