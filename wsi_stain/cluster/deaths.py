"""Why a worker's job ended, as a sentence: from what its log and the batch system say."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Literal

from wsi_stain.config.cluster import ClusterConfig

Cause = Literal["memory", "walltime", "node", "cancelled"]

SIGNS: dict[Cause, str] = {
    # slurmstepd with cgroups and without; PBS; LSF; the kernel's words, which any of them may quote.
    "memory": r"oom[-_ ]kill|exceeded (?:job |step )?memory limit|mem .*exceeded limit|TERM_MEMLIMIT|"
    r"OUT_OF_MEMORY|Out Of Memory",
    "node": r"DUE TO NODE FAILURE|NODE_FAIL|BOOT_FAIL",
    "walltime": r"DUE TO TIME LIMIT|TIMEOUT|walltime .*exceeded limit|TERM_RUNLIMIT|h_rt",
    "cancelled": r"CANCELLED|DUE TO PREEMPTION|PREEMPTED|TERM_OWNER|TERM_PREEMPT",
}
"""What logs and states say of a cause; the first that is found counts: every end of a job is also a cancellation."""


GRACE_S = 2.0
"""A worker's connection ends before its job does: so long SLURM may take to write why."""


def explain(error: BaseException, subject: str, config: ClusterConfig) -> str | None:
    """A sentence on why the worker of a task died; `None` if it was no job, or nobody knows.

    Args:
        error: what the task's future raised.
        subject: what the task worked on, for example a slide's name.
        config: of the cluster; its `logs` are read, and SLURM is asked.
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
    """What happened to the worker of `subject`, and what to do."""
    memory = config.memory or "16GB"
    goes_on = "re-run the same command to resume"
    match cause:
        case "memory":
            said = f"by the memory limit {memory}: raise `memory` in the cluster file, or lower its `cores`"
        case "walltime":
            said = f"by the walltime {config.walltime}: raise `walltime` or `retire_s` in the cluster file; {goes_on}"
        case "node":
            said = f"by the failure of its node; {goes_on}"
        case _:
            said = f"because its job was cancelled or preempted; {goes_on}"
    return f"worker killed on {subject} {said}"


def find_log(folder: Path, name: str, address: str) -> Path | None:
    """The newest log that speaks of a worker, known by its name or its address."""
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
        text += _slurm_state(job[1])
    return cause_of(text)


def cause_of(text: str) -> Cause | None:
    """The cause that a log or a batch system's state names."""
    return next((cause for cause, sign in SIGNS.items() if re.search(sign, text)), None)


def _slurm_state(job: str) -> str:
    """The state of a job that ended; sites without accounting remember it for some minutes."""
    for command in (["sacct", "-X", "-n", "-P", "-o", "State", "-j", job], ["scontrol", "show", "job", job, "-o"]):
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            continue
        state = re.search(r"JobState=(\w+)", said.stdout) or re.match(r"\s*(\w+)", said.stdout)
        if said.returncode == 0 and state:
            return f"\n{state[1]}"
    return ""
