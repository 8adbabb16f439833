"""The SLURM that `.ci/slurm start FOLDER` runs on this machine, as the tests see it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HOW = ".ci/slurm start /tmp/slurm && export SLURM_CONF=/tmp/slurm/slurm.conf"


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def needed() -> None:
    """Skip the test where that SLURM does not run: the tests submit no jobs to a real site."""
    configuration = os.environ.get("SLURM_CONF")
    if not configuration:
        pytest.skip(f"SLURM_CONF is not set: {HOW}")
    if "ClusterName=wsi_stain_test" not in Path(configuration).read_text():
        pytest.skip(f"{configuration} is not the tests' own SLURM: {HOW}")
    if not shutil.which("sbatch") or "idle" not in ask("sinfo", "-h", "-o", "%T") + "idle" * bool(jobs()):
        pytest.skip(f"the tests' SLURM does not answer: {HOW}")


def jobs(*states: str) -> dict[str, str]:
    """Id → name of this user's jobs that wait or run, or are in one of the states."""
    chosen = ["-t", ",".join(states)] if states else []
    return dict(line.split(maxsplit=1) for line in ask("squeue", "-h", "-o", "%A %j", *chosen).splitlines())


def state(job: str) -> str:
    actual = re.search(r"JobState=(\w+)", ask("scontrol", "show", "job", job, "-o"))
    assert actual
    return actual[1]
