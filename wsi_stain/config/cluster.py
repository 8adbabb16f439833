"""`configs/cluster/*.yaml`: what starts the workers of a cohort, how many, and what each may use."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_stain.errors import ConfigError

Kind = Literal["local", "slurm", "pbs", "lsf", "sge", "kubernetes"]

BATCH = ("slurm", "pbs", "lsf", "sge")
"""Kinds whose workers are jobs with a walltime."""

UNITS = {"": 1} | {
    unit: base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in ((letter, 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}
"""Bytes of a unit; a bare letter is what SLURM means by it, the rest is IEC 80000-13."""


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """What only pods need."""

    image: str = ""
    """Container image with wsi-stain, for example of `pipelines/container/Containerfile`."""
    namespace: str | None = None
    """The one of your kubectl context by default."""
    claims: tuple[str, ...] = ()
    """`claim:/path`: persistent volume claims with the slides and for the outputs, mounted in every pod. The command
    itself must run where it sees the same paths: in a pod of that namespace."""
    gpus: int = 0
    """GPUs (nvidia.com/gpu) of a worker: 0 or 1."""

    def __post_init__(self) -> None:
        wrong = [claim for claim in self.claims if not re.fullmatch(r"[a-z0-9.-]+:/.*", claim)]
        if wrong:
            raise ConfigError(f"kubernetes.claims has {wrong[0]!r}: write claim:/path, for example slides:/data")
        if self.gpus not in (0, 1):
            raise ConfigError(f"kubernetes.gpus is {self.gpus}: a worker uses one GPU at most; raise `workers` instead")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What starts the workers of a cohort; every key that a batch system need not know may be left out."""

    class_: Kind = "local"
    """What starts workers: `local` (processes of this machine), a batch system, or `kubernetes`."""
    scheduler: str | None = None
    """Address of a Dask scheduler that runs already; its workers are used, and nothing is started."""
    workers: tuple[int, int] | None = None
    """Fewest and most workers: between them, as many as there are slides to do. By default 0 to 8; on this machine one
    for each GPU or, without any, one for every `cores` processors."""
    cores: int = 4
    """Processors of a worker: as many threads read, blend and encode beside one device."""
    memory: str | None = None
    """Memory of a worker, as `16GB`. By default 16GB of a batch system or Kubernetes, and no limit on this machine."""
    walltime: str = "08:00:00"
    """How long a job may run, [D-]HH:MM:SS. A slide that takes longer goes on in the next job."""
    retire_s: int = 600
    """Seconds before the walltime at which a worker leaves on its own: time to finish a block, and for a slow clock."""
    stagger_s: int = 60
    """Workers leave up to this many seconds earlier or later, so that jobs started together do not end together."""
    partition: str | None = None
    """Partition of SLURM, queue of PBS, LSF and SGE; the site's default if not given."""
    account: str | None = None
    """Who pays: account of SLURM and PBS, project of LSF and SGE."""
    gres: str | None = None
    """SLURM's --gres, as `gpu:1` or `gpu:a100:1`: a worker uses one GPU."""
    resources: str | None = None
    """PBS's select or SGE's -l in place of the one made of `cores` and `memory`, where GPUs are asked for in it."""
    directives: tuple[str, ...] = ()
    """Further options of the job script, as `--qos=long`."""
    prologue: tuple[str, ...] = ()
    """Lines of shell before a worker starts, as `module load cuda` or `source /path/venv/bin/activate`."""
    interface: str | None = None
    """Network interface that the nodes share, as `ib0`; the one with the default route if not given."""
    python: str | None = None
    """Interpreter on the nodes; the one that runs this by default."""
    local_directory: str | None = None
    """Folder of the node for Dask's own files; its temporary folder by default. Slides never go there."""
    logs: Path = Path("cluster-logs")
    """What workers said, a file for each job; a killed worker's reason is looked up there."""
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.scheduler is not None and not re.fullmatch(r"[a-z+]+://.+", self.scheduler):
            raise ConfigError(f"scheduler is {self.scheduler!r}: it must be an address, for example tcp://host:8786")
        if self.gres is not None:
            _check_gres(self)
        if self.resources is not None and self.class_ not in ("pbs", "sge"):
            raise ConfigError(f"resources is {self.resources!r}, which only pbs and sge know: {self.class_} has others")
        if self.class_ == "kubernetes" and not self.kubernetes.image:
            raise ConfigError(
                "class is kubernetes and kubernetes.image is empty: name a container image with wsi-stain"
            )

    @property
    def is_batch(self) -> bool:
        """Whether workers are jobs with a walltime."""
        return self.scheduler is None and self.class_ in BATCH

    @property
    def memory_bytes(self) -> int | None:
        """The memory of a worker in bytes; `None` is without limit."""
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
    if config.workers is not None and not 0 <= config.workers[0] <= config.workers[1] >= 1:
        raise ConfigError(f"workers is {list(config.workers)}: write fewest and most, for example [0, 8]")
    if config.cores < 1:
        raise ConfigError(f"cores is {config.cores}: a worker needs at least 1")
    if config.memory is not None:
        _bytes(config.memory)
    if config.retire_s < 0 or config.stagger_s < 0:
        raise ConfigError(f"retire_s is {config.retire_s} and stagger_s {config.stagger_s}: none may be negative")
    least = config.retire_s + 2 * config.stagger_s
    if config.walltime_s <= least:
        raise ConfigError(
            f"walltime is {config.walltime}, which is not above retire_s + 2 × stagger_s = {least} s: workers would "
            "leave before they came; ask for more time or lower retire_s"
        )


def _check_gres(config: ClusterConfig) -> None:
    if config.class_ != "slurm":
        others = "`resources` (pbs, sge), `directives` (lsf) or kubernetes.gpus"
        raise ConfigError(f"gres is {config.gres!r}, which only slurm knows: {config.class_} asks for GPUs in {others}")
    several = re.search(r"\bgpu(?::[^:,]+)?:(\d+)\b", config.gres or "")
    if several and int(several[1]) > 1:
        raise ConfigError(
            f"gres is {config.gres!r}: a worker uses one GPU; write gpu:1 and raise `workers`, which get one each"
        )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT](?:i?B)?)?", text)
    if not found or not float(found[1]):
        raise ConfigError(f"memory is {text!r}: write a size with its unit, for example 16GB or 16GiB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if not found:
        raise ConfigError(f"walltime is {text!r}: write HH:MM:SS or D-HH:MM:SS in quotes, for example '08:00:00'")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
