"""Lease of a slide: a lock with a heartbeat that the coordinator can revoke.

A worker holds the lease `<id>.running.json` while it converts. It writes its heartbeat into the existing file and never
creates a new one: a removed lease stays removed, and its holder detects this and stops. Others judge by whether the
heartbeat changes while they watch (`Pulse`), never by comparing the clocks of two hosts.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from wsi_stain.files import atomic, lock

BEAT_S = 5.0
"""Interval between heartbeats."""
STALE_S = 60.0
"""Time without a new heartbeat after which a holder counts as lost; network file systems show heartbeats late."""
WATCH_S = 3 * BEAT_S
"""Time for which a reader watches a lease that looks late, before it reports its holder as lost."""
LOOK_S = 0.5
"""Shortest interval at which the holder checks whether it still has the lease."""
ROOM_BYTES = 1024
"""Padded size of a lease: a heartbeat needs no new space on a full disk and overwrites the previous one fully."""


class LeaseLost(Exception):  # noqa: N818 - a request to stop, not an error
    """The lease was revoked; the conversion that runs under it must stop."""


class Lease:
    """Context manager that holds the lease while a slide is converted.

        with Lease(path, {"worker": address}) as lease:
            for block in blocks:
                lease.check()
                lease.progress = …

    Raises:
        InUse: on entering, if another process holds it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._token = path, uuid.uuid4().hex
        self._about = {**lock.this_process(), **about, "token": self._token}
        self._start = self._last_check = time.monotonic()
        self._end = threading.Event()
        self._is_mine = True
        self.progress = 0.0
        """Completed share, 0–1."""

    def __enter__(self) -> Self:
        lock.take(self._path, self._content())
        self._beat()  # padded
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._beat()
        if self._is_mine:
            atomic.delete(self._path)

    def check(self) -> None:
        """Raise LeaseLost if the lease was revoked."""
        if time.monotonic() - self._last_check > LOOK_S:
            self._last_check = time.monotonic()
            self._is_mine = self._is_mine and read_lease(self._path).get("token") == self._token
        if not self._is_mine:
            raise LeaseLost

    def _run(self) -> None:
        while not self._end.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        """Write a heartbeat into the existing file, if it is still this lease."""
        try:
            handle = os.open(self._path, os.O_RDWR | getattr(os, "O_BINARY", 0))  # on Windows: no line ends
        except FileNotFoundError:
            self._is_mine = False
            return
        except OSError:
            return  # skip this heartbeat; the next one follows in a few seconds
        try:
            if _parsed(os.read(handle, 2 * ROOM_BYTES)).get("token") != self._token:
                self._is_mine = False
                return
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(self._content()).ljust(ROOM_BYTES).encode())
        except OSError:
            pass
        finally:
            os.close(handle)

    def _content(self) -> dict[str, Any]:
        return {
            **self._about,
            "beat": time.time(),
            "seconds": round(time.monotonic() - self._start, 1),
            "progress": round(self.progress, 4),
            "memory": psutil.Process().memory_info().rss,
        }


class Pulse:
    """Heartbeats of other processes, timed by the clock of this one.

    pulse = Pulse()
    while pulse.silence_s(lease := read_lease(path)) < STALE_S:
        ...  # its holder may be alive
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}

    def silence_s(self, lease: Mapping[str, Any]) -> float:
        """Seconds since the current heartbeat of a lease was first seen here; 0 at the first look."""
        token, beat, now = str(lease.get("token")), float(lease.get("beat", 0.0)), time.monotonic()
        if token not in self._seen or self._seen[token][0] != beat:
            self._seen[token] = beat, now
        return now - self._seen[token][1]

    def watch(self, paths: Iterable[Path]) -> None:
        """Wait until each of the leases has a new heartbeat, at most `WATCH_S`; the others count as silent."""
        end, waiting = time.monotonic() + WATCH_S, {path: read_lease(path) for path in paths}
        while waiting and time.monotonic() < end:
            time.sleep(min(LOOK_S, WATCH_S))
            waiting = {path: old for path, old in waiting.items() if read_lease(path).get("beat") == old.get("beat")}
        for lease in waiting.values():
            self._seen[str(lease.get("token"))] = float(lease.get("beat", 0.0)), time.monotonic() - STALE_S


def looks_late(lease: Mapping[str, Any]) -> bool:
    """Whether the heartbeat is far from the clock of this host: its holder is lost, or the clocks differ; watch it."""
    return abs(time.time() - lease.get("beat", 0.0)) > STALE_S


def read_lease(path: Path) -> dict[str, Any]:
    """Content of a lease; empty if it is missing."""
    for _ in range(3):
        try:
            content = _parsed(path.read_bytes())
        except OSError:
            return {}
        if content:
            return content
        time.sleep(0.01)  # it was read during a write
    return {}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
