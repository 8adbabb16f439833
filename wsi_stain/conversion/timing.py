"""Who is busy: seconds per stage of every thread that paints, and what they say about the bottleneck.

    thread 1  | read | wait | generate      | blend | write | read | wait …
    thread 2         | read        | wait   | generate      | blend | write |
                            device |======= busy ==========|

A stage's *share* is its part of what all threads had, wall time × threads; the device's is its part of the wall time.
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
    """A thread, among all of a cluster."""

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
        """Count what happens inside for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @contextmanager
    def holding(self, lock: threading.Lock, stage: str) -> Generator[None]:
        """Hold a lock and count for a stage; the time until then counts as `wait`."""
        with self("wait"):
            lock.acquire()
        try:
            with self(stage):
                yield
        finally:
            lock.release()


@dataclass(slots=True)
class Usage:
    """What all threads of a conversion have done so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Thread-seconds per stage."""
    threads: set[Where] = field(default_factory=set)
    """Those that have finished a block: a cluster's may come and go."""

    def add(self, seconds: Mapping[str, float], where: Where) -> None:
        """Count a block's stages."""
        self.threads.add(where)
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def shares(self, wall_s: float) -> dict[str, float]:
        """Per stage its share of the threads' time, 0–1; what is missing from 1 they were idle."""
        had = wall_s * len(self.threads)
        return {stage: value / had for stage, value in self.seconds.items()} if had else {}

    def device_busy(self, wall_s: float) -> float:
        """The share of the wall time in which a device worked, 0–1; the mean over the processes, each with its own."""
        devices = {where[:2] for where in self.threads}
        return self.seconds.get(DEVICE, 0.0) / (wall_s * len(devices)) if devices and wall_s else 0.0
