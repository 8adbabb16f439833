"""The faults of a conversion: each does harm at a random moment, and tells what was kept.

A round is lost if the same command does not end afterwards in the bytes of an unbroken run, or if there is an output
that differs from them.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import tifffile

CHILD = """
import sys, time
from pathlib import Path
from wsi_stain.config.convert import ConvertConfig
from wsi_stain.config.loader import load
from wsi_stain.conversion.engine import ConvertRequest, convert
from wsi_stain.errors import WsiStainError
from wsi_stain.model.bundle import IdentityGenerator

def slow(self, tiles):
    time.sleep(0.004)
    return 255 - tiles

IdentityGenerator.__call__ = slow
config = load(ConvertConfig, None, ["grid.block=512", "grid.tile=256", "grid.overlap=32", "output.compression=deflate"])
request = ConvertRequest(Path(sys.argv[1]), Path(sys.argv[2]), "identity", mask="none", workers=2, config=config)
try:
    convert(request, lambda event: print(event.stage, flush=True))
except WsiStainError as err:
    sys.exit(f"wsi-stain: {err}")
"""
SIZE = (1600, 1800)


@dataclass
class Row:
    """What became of a fault."""

    fault: str
    tried: int = 0
    hit: int = 0
    """How often the run was still working when the fault came."""
    lost: int = 0
    seen: set[str] = field(default_factory=set)
    """First words of what the user saw."""


class Case:
    """A slide, and the bytes of its unbroken conversion."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.folder, self.ending = folder, ending
        self._processes: list[subprocess.Popen[str]] = []
        folder.mkdir(parents=True)
        self.slide = folder / "s.tif"
        pixels = np.kron(np.random.default_rng(0).integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3)), np.ones((8, 8, 1)))
        scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(
            self.slide, pixels.astype(np.uint8), tile=(256, 256), photometric="rgb", compression="zlib", **scale
        )
        whole = folder / "whole" / f"x.{ending}"
        whole.parent.mkdir()
        start = time.monotonic()
        process = self.start(whole)
        assert process.wait() == 0, process.communicate()[1]
        self.seconds, self.expected = time.monotonic() - start, digest(whole)

    def start(self, output: Path, **options: object) -> subprocess.Popen[str]:
        """Begin a conversion."""
        command = [sys.executable, "-c", CHILD, str(self.slide), str(output)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what still runs, and close the pipes."""
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()

    def started(self, output: Path, events: int, **options: object) -> subprocess.Popen[str]:
        """A conversion that has reported so many events."""
        process = self.start(output, **options)
        assert process.stdout
        for _ in range(events):
            if not process.stdout.readline():
                break
        return process

    def resumed(self, output: Path, row: Row) -> None:
        """The same command again; the round is lost unless it ends in the expected bytes."""
        process = self.start(output)
        message = process.communicate()[1]
        if process.returncode or digest(output) != self.expected:
            row.lost += 1
            row.seen.add(f"code {process.returncode}: {message[-200:]}")


def digest(output: Path) -> str:
    """One hash over a file, or all names and files of a folder; empty if there is none."""
    files = sorted(p for p in output.rglob("*") if p.is_file()) if output.is_dir() else [output]
    total = hashlib.sha256()
    for path in files:
        if not path.exists():
            return ""
        total.update(str(path.relative_to(output)).encode() + path.read_bytes())
    return total.hexdigest()


def by_signal(number: int) -> Callable[[Case, Path, Random, Row], None]:
    """A signal at a random moment."""

    def fault(case: Case, output: Path, random: Random, row: Row) -> None:
        process = case.started(output, random.randint(1, 18))
        time.sleep(random.random() * 0.1)
        row.hit += process.poll() is None
        process.send_signal(number)
        last = (process.communicate()[1].strip().splitlines() or [""])[-1]  # nothing if it had just finished
        row.seen.add(last[:60] if number == signal.SIGINT else "")
        case.resumed(output, row)

    return fault


def stopped(case: Case, output: Path, random: Random, row: Row) -> None:
    """Stopped for a while, then continued."""
    process = case.started(output, random.randint(1, 15))
    row.hit += process.poll() is None
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    row.lost += bool(process.returncode) or digest(output) != case.expected


def full_disk(case: Case, output: Path, random: Random, row: Row) -> None:
    """A small tmpfs that is full at some moment, and later larger."""
    disk = output.parent / f"disk{random.random()}"
    disk.mkdir()
    size = random.randint(200, 9000)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
    try:
        process = case.start(disk / output.name)
        message = process.communicate()[1]
        row.hit += process.returncode != 0
        if process.returncode:
            row.seen.add(message.strip().splitlines()[-1].partition(": ")[2][-60:])
            row.lost += "Traceback" in message or (disk / output.name).exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        case.resumed(disk / output.name, row)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def slide_cut(case: Case, output: Path, random: Random, row: Row) -> None:
    """The slide is cut while it is read, and restored later: no output comes of it, and no block is kept."""
    good = case.slide.read_bytes()
    process = case.started(output, random.randint(1, 8))
    row.hit += process.poll() is None
    with case.slide.open("r+b") as file:
        file.truncate(len(good) // 2)
    message = process.communicate()[1]
    if process.returncode == 0 and digest(output) != case.expected:
        row.lost += 1
    row.seen.add(message.strip().splitlines()[-1].partition(": ")[2][-60:] if message.strip() else "")
    case.slide.write_bytes(good)
    case.resumed(output, row)


def few_files(case: Case, output: Path, random: Random, row: Row) -> None:
    """A limit of open files between 64 and 1,024."""
    limit = random.choice((64, 128, 256, 1024))
    process = case.start(output, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    message = process.communicate()[1]
    row.hit += 1
    if process.returncode or digest(output) != case.expected:
        row.lost += 1
        row.seen.add(f"limit {limit}: {message[-200:]}")


def two_at_once(case: Case, output: Path, random: Random, row: Row) -> None:
    """Two processes on one output: one is told, the other ends as if alone."""
    processes = [case.start(output) for _ in range(2)]
    messages = [process.communicate()[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    row.hit += codes == [0, 1]
    row.seen.update(m.strip().splitlines()[-1].partition("; ")[2][:60] for m in messages if m.strip())
    row.lost += codes[0] != 0 or digest(output) != case.expected


FAULTS: dict[str, Callable[[Case, Path, Random, Row], None]] = {
    "SIGKILL": by_signal(signal.SIGKILL),
    "SIGTERM": by_signal(signal.SIGTERM),
    "SIGINT": by_signal(signal.SIGINT),
    "SIGSTOP, SIGCONT": stopped,
    "slide cut while read": slide_cut,
    "open files limited": few_files,
    "two processes, one output": two_at_once,
    "disk full": full_disk,
}


def run(folder: Path, rounds: int, seed: int, faults: list[str], ending: str) -> list[Row]:
    """Try every fault so many times."""
    rows: list[Row] = []
    with closing(Case(folder / ending, ending)) as case:
        for name in faults:
            if FAULTS[name] is full_disk and os.geteuid():
                continue
            row, random = Row(name), Random(f"{seed} {name}")
            for number in range(rounds):
                place = case.folder / f"{len(rows)}-{number}"
                place.mkdir()
                row.tried += 1
                FAULTS[name](case, place / f"x.{ending}", random, row)
                shutil.rmtree(place)
            rows.append(row)
            print(f"{ending:9} {name:26} {row.tried:4} tried {row.hit:4} hit {row.lost:3} lost", flush=True)
    return rows
