"""Lease of a slide: a lock with a heartbeat that the coordinator can revoke.

A worker holds the lease `<id>.running.json` while it converts. It writes its heartbeat into the existing file and never
creates a new one: a removed lease stays removed, and its holder detects this and stops.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from wsi_stain.files import lock

BEAT_S = 5.0
"""Interval between heartbeats."""
STALE_S = 60.0
"""Age of the last heartbeat after which a holder counts as lost; network file systems show heartbeats late."""
LOOK_S = 0.5
"""Shortest interval at which the holder checks whether it still has the lease."""
ROOM_BYTES = 1024
"""Padded size of a lease: a heartbeat needs no new space on a full disk and overwrites the previous one fully."""


class Withdrawn(Exception):  # noqa: N818 - a request to stop, not an error
    """The lease was revoked; the conversion that runs under it must stop."""


class Lease:
    """Context manager that holds the lease while a slide is converted.

        with Lease(path, {"worker": address}) as lease:
            for block in blocks:
                lease.check()
                lease.share = …

    Raises:
        InUse: on entering, if another process holds it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._token = path, uuid.uuid4().hex
        self._about = {**lock.this_process(), **about, "token": self._token}
        self._start = self._last_check = time.time()
        self._end = threading.Event()
        self._is_mine = True
        self.share = 0.0
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
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise Withdrawn if the lease was revoked."""
        if time.time() - self._last_check > LOOK_S:
            self._last_check = time.time()
            self._is_mine = self._is_mine and read_lease(self._path).get("token") == self._token
        if not self._is_mine:
            raise Withdrawn

    def _run(self) -> None:
        while not self._end.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        """Write a heartbeat into the existing file, if it is still this lease."""
        try:
            handle = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            self._is_mine = False
            return
        except OSError:
            return  # skip this heartbeat; the next one follows in a few seconds
        try:
            if _parsed(os.read(handle, 2 * ROOM_BYTES)).get("token") != self._token:
                self._is_mine = False
                return
            os.pwrite(handle, json.dumps(self._content()).ljust(ROOM_BYTES).encode(), 0)
        except OSError:
            pass
        finally:
            os.close(handle)

    def _content(self) -> dict[str, Any]:
        now = time.time()
        used = psutil.Process().memory_info().rss
        return {
            **self._about,
            "beat": now,
            "seconds": round(now - self._start, 1),
            "share": round(self.share, 4),
            "memory": used,
        }


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
