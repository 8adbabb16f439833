"""Seconds per stage of every painting thread, and the bottleneck that follows from them.

    thread 1  | read | wait | generate      | blend | write | read | wait …
    thread 2         | read        | wait   | generate      | blend | write |
                            device |======= busy ==========|

The *share* of a stage is its part of wall time × threads; the share of the device is its part of the wall time.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

DEVICE = "generate"
"""The stage in which a thread holds its process's device."""


class Where(NamedTuple):
    """Identifies a thread within a cluster."""

    host: str
    process: int
    thread: int

    @classmethod
    def here(cls) -> Where:
        """The calling thread."""
        return cls(socket.gethostname(), os.getpid(), threading.get_ident())


class Clock:
    """Adds up the time that one thread spends in named stages.

    clock = Clock()
    with clock("read"):
        ...
    clock.seconds  # {"read": 0.2}
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Add the time inside the context to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @contextmanager
    def holding(self, lock: threading.Lock, stage: str) -> Generator[None]:
        """Hold a lock and add the time to a stage; the time until the lock is acquired counts as `wait`."""
        with self("wait"):
            lock.acquire()
        try:
            with self(stage):
                yield
        finally:
            lock.release()


@dataclass(slots=True)
class Usage:
    """Busy time of all threads of a conversion so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Thread-seconds per stage."""
    threads: set[Where] = field(default_factory=set)
    """Threads that have finished a block; those of a cluster may change."""

    def add(self, seconds: Mapping[str, float], where: Where) -> None:
        """Add the stages of a block."""
        self.threads.add(where)
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def shares(self, wall_s: float) -> dict[str, float]:
        """Share of each stage in the threads' time, 0–1; the rest is idle time."""
        total = wall_s * len(self.threads)
        return {stage: value / total for stage, value in self.seconds.items()} if total else {}

    def device_busy(self, wall_s: float) -> float:
        """The share of the wall time in which a device worked, 0–1; the mean over the processes, each with its own."""
        devices = {where[:2] for where in self.threads}
        return self.seconds.get(DEVICE, 0.0) / (wall_s * len(devices)) if devices and wall_s else 0.0
