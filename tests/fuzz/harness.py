"""Makes inputs, gives them to workers, and judges what comes back."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from tests.fuzz.kinds import KINDS
from tests.fuzz.mutate import mutated

LIMIT_S, PATIENCE_S, LIMIT_BYTES = 10.0, 90.0, 2 << 30
"""CPU time of an input, its wall time on a busy machine, and its memory above that of the idle worker."""
ROOT = Path(__file__).parents[2]
CRASHERS = Path(__file__).parent / "crashers"


class Worker:
    """A process that uses inputs, started again after every failure."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.fuzz.worker"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        assert self._lines.get(timeout=300) == "ready\n"
        self._idle_bytes = psutil.Process(self._process.pid).memory_info().rss

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def use(self, kind: str, path: Path) -> dict[str, object]:
        """The outcome of an input: `end`, `text`."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"kind": kind, "path": str(path)}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer is None:
            self.close()
            self._start()
            return {"end": "hang", "text": f"more than {LIMIT_S:g} s"}
        if not answer:
            code = self._process.wait()
            self._start()
            return {"end": "crash", "text": f"exit code {code}"}
        outcome = json.loads(answer)
        if outcome["peak"] - self._idle_bytes > LIMIT_BYTES:
            text = f"{(outcome['peak'] - self._idle_bytes) >> 20} MiB; {outcome.get('text', '')}"
            outcome = {"end": "memory", "text": text}
        if outcome["end"] not in ("fine", "refused") or outcome.get("peak", 0) > LIMIT_BYTES:
            self.close()  # its peak is that of the whole process
            self._start()
        return outcome

    def _answer(self) -> str | None:
        """A line; empty if the process has ended, None if it takes too long."""
        process, start = psutil.Process(self._process.pid), time.monotonic()
        before = sum(process.cpu_times()[:2])
        while time.monotonic() - start < PATIENCE_S:
            try:
                return self._lines.get(timeout=0.5)
            except queue.Empty:
                pass
            try:
                if sum(process.cpu_times()[:2]) - before > LIMIT_S:
                    return None
            except psutil.Error:
                continue
        return None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@dataclass
class Tally:
    """What became of the inputs of a kind."""

    tried: int = 0
    fine: int = 0
    refused: int = 0
    failures: list[dict[str, object]] = field(default_factory=list)


def make(kind: str, good: Path, folder: Path, random: Random) -> Path:
    """A mutated copy of a good input."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    victim = random.choice(files)
    victim.write_bytes(mutated(victim.read_bytes(), random))
    return folder / KINDS[kind].name if KINDS[kind].name else folder


def build(kinds: list[str], folder: Path) -> dict[str, Path]:
    """A good input of every kind, each in its folder."""
    goods = {}
    for kind in kinds:
        goods[kind] = folder / kind
        goods[kind].mkdir(parents=True)
        KINDS[kind].build(goods[kind] / KINDS[kind].name if KINDS[kind].name else goods[kind])
    return goods


def run(kinds: list[str], seed: int, seconds: float, most: int, folder: Path) -> dict[str, Tally]:
    """Try inputs until the time or the number is reached."""
    goods, tallies, worker = build(kinds, folder / "good"), {kind: Tally() for kind in kinds}, Worker()
    choose = Random(seed)
    try:
        for kind in kinds:
            outcome = worker.use(kind, goods[kind] / KINDS[kind].name if KINDS[kind].name else goods[kind])
            if outcome["end"] != "fine" and kind not in ("table", "config"):
                raise AssertionError(f"the good input of {kind}: {outcome}")
        deadline = time.monotonic() + seconds
        for number in range(most):
            if time.monotonic() > deadline:
                break
            kind = choose.choices(kinds, [KINDS[kind].weight for kind in kinds])[0]
            path = make(kind, goods[kind], folder / "input", Random(f"{seed} {number}"))
            _count(tallies[kind], kind, number, worker.use(kind, path), folder)
    finally:
        worker.close()
    return tallies


def _count(tally: Tally, kind: str, number: int, outcome: dict[str, object], folder: Path) -> None:
    tally.tried += 1
    if outcome["end"] in ("fine", "refused"):
        setattr(tally, str(outcome["end"]), getattr(tally, str(outcome["end"])) + 1)
        return
    kept = folder / "failed" / f"{kind}-{number}"
    shutil.copytree(folder / "input", kept)
    tally.failures.append({"number": number, "kept": str(kept), **outcome})
    print(f"{kind} {number}: {outcome['end']}: {str(outcome.get('text'))[:300]}", flush=True)
    print("   ", " | ".join(str(outcome.get("trace", "")).strip().splitlines()[-7:]), flush=True)
