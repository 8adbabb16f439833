"""A folder: free space, speed, and what its file system can do."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from wsi_stain.doctor.finding import Finding
from wsi_stain.errors import InUse
from wsi_stain.files.atomic import atomic_write
from wsi_stain.files.full_disk import gib
from wsi_stain.files.lock import locked

TESTED_BYTES = 32 << 20
SLOW_BYTES_PER_S = 50e6
"""A conversion on a GPU writes about 20 MB/s, and reads as much."""
LITTLE_BYTES, TOO_LITTLE_BYTES = 10 << 30, 1 << 30
ELSEWHERE = "free some space, or choose another folder with -o"


def check_folder(subject: str, folder: Path) -> Iterator[Finding]:
    """Findings on a folder; a few files are written into it and removed."""
    free = shutil.disk_usage(folder).free
    level = "FAIL" if free < TOO_LITTLE_BYTES else "WARN" if free < LITTLE_BYTES else "PASS"
    fix = "" if level == "PASS" else f"a whole slide takes up to {gib(LITTLE_BYTES)}; {ELSEWHERE}"
    yield Finding(f"{subject}: space", level, f"{gib(free)} free in {folder}", fix)
    try:
        with tempfile.TemporaryDirectory(prefix=".wsi-stain-doctor-", dir=folder) as name:
            place = Path(name)
            yield _speed(subject, place)
            yield _locks(subject, place)
            yield _renames(subject, place)
    except OSError as err:
        yield Finding(
            f"{subject}: files", "FAIL", f"{folder}: {err.strerror or err}", "choose a folder you can write to"
        )


def _speed(subject: str, folder: Path) -> Finding:
    """Bytes per second that reach the disk."""
    start = time.perf_counter()
    with (folder / "speed").open("wb") as file:
        for _ in range(TESTED_BYTES >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    rate = TESTED_BYTES / (time.perf_counter() - start)
    detail = f"{rate / 1e6:.0f} MB/s written"
    if rate < SLOW_BYTES_PER_S:
        return Finding(f"{subject}: speed", "WARN", detail, "choose a local disk: a GPU will wait for this one")
    return Finding(f"{subject}: speed", "PASS", detail)


def _locks(subject: str, folder: Path) -> Finding:
    """Whether a second holder is kept out."""
    fix = "choose another folder: here, two runs could write one output"
    try:
        with locked(folder / "lock"), locked(folder / "lock"):
            return Finding(f"{subject}: locks", "FAIL", "a lock that is held was given to a second holder", fix)
    except InUse:
        pass
    if (folder / "lock").exists():
        return Finding(f"{subject}: locks", "FAIL", "a lock that was released is still there", fix)
    return Finding(f"{subject}: locks", "PASS", "keep a second run out")


def _renames(subject: str, folder: Path) -> Finding:
    """Whether a file is replaced at once, with its content."""
    path = folder / "replaced"
    for content in (b"old", b"new"):
        atomic_write(path, content)
    if path.read_bytes() != b"new" or [p.name for p in folder.iterdir() if p.name.startswith("replaced")] != [
        path.name
    ]:
        fix = "choose another folder: here, outputs do not appear whole"
        return Finding(f"{subject}: renames", "FAIL", "a file was not replaced by renaming another one", fix)
    return Finding(f"{subject}: renames", "PASS", "replace a file at once")
