"""Explains why the job of a worker ended, from its log and the state in the batch system."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Literal

from wsi_stain.cluster import slurm
from wsi_stain.config.cluster import ClusterConfig

Cause = Literal["memory", "walltime", "node", "cancelled"]

SIGNS: dict[Cause, str] = {
    # slurmstepd with and without cgroups; PBS; LSF; the kernel's message, which any of them may quote.
    "memory": r"oom[-_ ]kill|exceeded (?:job |step )?memory limit|mem .*exceeded limit|TERM_MEMLIMIT|"
    r"OUT_OF_MEMORY|Out Of Memory",
    "node": r"DUE TO NODE FAILURE|NODE_FAIL|BOOT_FAIL",
    "walltime": r"DUE TO TIME LIMIT|TIMEOUT|walltime .*exceeded limit|TERM_RUNLIMIT|h_rt",
    "cancelled": r"CANCELLED|DUE TO PREEMPTION|PREEMPTED|TERM_OWNER|TERM_PREEMPT",
}
"""Patterns in logs and states by cause; the first match counts, since any end of a job may look like a cancellation."""


GRACE_S = 2.0
"""Time for SLURM to record the reason, s: the connection of a worker ends before its job does."""


def explain(error: BaseException, subject: str, config: ClusterConfig) -> str | None:
    """Message on why the worker of a task died; `None` if it was not a job or the cause is unknown.

    Args:
        error: raised by the future of the task.
        subject: of the task, for example the name of a slide.
        config: of the cluster; its `logs` are read, and SLURM is queried.
    """
    from distributed import KilledWorker

    if not isinstance(error, KilledWorker) or not config.is_batch:
        return None
    worker = error.last_worker
    log = find_log(config.logs, str(worker.name), worker.address)
    cause = _cause(log, config) if log else None
    end = time.monotonic() + (GRACE_S if config.class_ == "slurm" else 0)
    while log and cause is None and time.monotonic() < end:
        time.sleep(GRACE_S / 5)
        cause = _cause(log, config)
    return sentence(cause, subject, config) if cause else None


def sentence(cause: Cause, subject: str, config: ClusterConfig) -> str:
    """Message on what happened to the worker of `subject`, with the next step."""
    memory = config.memory or "16GB"
    resume = "re-run the same command to resume"
    match cause:
        case "memory":
            end = f"by the memory limit {memory}: raise `memory` in the cluster file, or lower its `cores`"
        case "walltime":
            end = f"by the walltime {config.walltime}: raise `walltime` or `retire_s` in the cluster file; {resume}"
        case "node":
            end = f"by the failure of its node; {resume}"
        case _:
            end = f"because its job was cancelled or preempted; {resume}"
    return f"worker killed on {subject} {end}"


def find_log(folder: Path, name: str, address: str) -> Path | None:
    """The newest log that contains the name or the address of a worker."""
    logs = [path for path in folder.glob("*") if path.is_file()] if folder.is_dir() else []
    for path in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
        text = path.read_text(encoding="utf-8", errors="replace")
        if re.search(rf"{re.escape(name)}(?!\w)|{re.escape(address)}(?!\d)", text):
            return path
    return None


def _cause(log: Path, config: ClusterConfig) -> Cause | None:
    text = log.read_text(encoding="utf-8", errors="replace")
    job = re.search(r"-(\d+)\.\w+$", log.name)
    if config.class_ == "slurm" and job:
        text += f"\n{slurm.state(job[1])}"
    return cause_of(text)


def cause_of(text: str) -> Cause | None:
    """The cause found in a log or in the job state of a batch system."""
    return next((cause for cause, sign in SIGNS.items() if re.search(sign, text)), None)
