"""What the workers of test_slurm.py do; they import this module, so it imports little."""

import os
import time
from pathlib import Path

from wsi_stain.cluster.retirement import is_retiring


def surroundings() -> dict[str, str]:
    return dict(os.environ)


def job() -> str:
    return os.environ["SLURM_JOB_ID"]


def paint(folder: str, blocks: int) -> tuple[str, int]:
    """Like a slide: block after block, and those that an earlier worker painted are not painted again.

    Returns who finished it, and how many blocks that worker painted.
    """
    painted = 0
    for block in range(blocks):
        mark = Path(folder) / str(block)
        if mark.exists():
            continue
        if is_retiring():
            (Path(folder) / f"left by {job()}").touch()
            return job(), painted
        time.sleep(0.3)
        mark.touch()
        painted += 1
    return job(), painted


def take_memory() -> None:
    taken = []
    for _ in range(200):
        taken.append(bytes(range(256)) * (10 << 12))
        time.sleep(0.05)


def crash() -> None:
    os.abort()
