"""What is asked of SLURM beside starting and cancelling jobs: whether it accepts a job, and what became of one."""

from __future__ import annotations

import getpass
import logging
import re
import subprocess
import tempfile

from wsi_stain.errors import ConfigError

logger = logging.getLogger(__name__)

PATIENCE_S = 30
"""Timeout of a command, s."""


def check(script: str) -> None:
    """Check with `sbatch --test-only` that SLURM accepts a job script.

    Raises:
        ConfigError: SLURM refuses it; the message quotes the reason.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        result = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False)
    if result.returncode:
        words = " ".join(result.stderr.replace("sbatch: error:", "").replace("allocation failure:", "").split())
        raise ConfigError(
            f"SLURM refuses the workers' job: {words}; compare partition, account, gres, cores, memory and walltime in "
            "the cluster file with the output of `sinfo` and `scontrol show partition`"
        )


def queued() -> set[str] | None:
    """Ids of this user's pending and running jobs; `None` if SLURM does not answer, for example while it restarts."""
    answer = _answer("squeue", "-h", "-u", getpass.getuser(), "-o", "%A")
    return None if answer is None else set(answer.split())


def state(job: str) -> str:
    """The state of an ended job, "" if unknown; sites without accounting keep it for a few minutes."""
    for command in (("sacct", "-X", "-n", "-P", "-o", "State", "-j", job), ("scontrol", "show", "job", job, "-o")):
        answer = _answer(*command) or ""
        match = re.search(r"JobState=(\w+)", answer) or re.match(r"\s*(\w+)", answer)
        if match:
            return match[1]
    return ""


def _answer(*command: str) -> str | None:
    """What a command prints; `None` if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    except subprocess.CalledProcessError as err:
        logger.debug("%s failed: %s", command[0], " ".join(err.stderr.split()))
    except (OSError, subprocess.TimeoutExpired) as err:
        logger.debug("%s failed: %s", command[0], err)
    return None
