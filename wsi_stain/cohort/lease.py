"""Who converts a slide right now: a lock with a heartbeat, which its coordinator can take away.

A worker holds the lease `<id>.running.json` while it converts. It writes its heartbeat into that very file, never a new
one: a lease that somebody removed stays removed, and its holder finds out and stops.
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
"""Between heartbeats."""
STALE_S = 60.0
"""A holder that was not heard of for so long is not at work; network file systems show a beat late."""
LOOK_S = 0.5
"""How often at most the holder looks whether it still has the lease."""
ROOM_BYTES = 1024
"""A lease is padded to this, so that a heartbeat needs no room on a full disk and replaces all of the one before."""


class Withdrawn(Exception):  # noqa: N818 - an order, and no error
    """The lease is gone: whoever converts under it must stop."""


class Lease:
    """Held while a slide is converted; a context manager.

        with Lease(path, {"worker": address}) as lease:
            for block in blocks:
                lease.check()
                lease.share = …

    Raises:
        InUse: on entering, where another process holds it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._token = path, uuid.uuid4().hex
        self._about = {**lock.this_process(), **about, "token": self._token}
        self._start = self._looked = time.time()
        self._end = threading.Event()
        self._is_mine = True
        self.share = 0.0
        """How much is painted, 0–1."""

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
        """Raise Withdrawn if somebody took the lease away."""
        if time.time() - self._looked > LOOK_S:
            self._looked = time.time()
            self._is_mine = self._is_mine and read_lease(self._path).get("token") == self._token
        if not self._is_mine:
            raise Withdrawn

    def _run(self) -> None:
        while not self._end.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        """Write into the file that is there, if it is still this lease."""
        try:
            handle = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            self._is_mine = False
            return
        except OSError:
            return  # a beat that is missed: the next one is a few seconds away
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
    """What a lease says; empty where there is none."""
    for _ in range(3):
        try:
            found = _parsed(path.read_bytes())
        except OSError:
            return {}
        if found:
            return found
        time.sleep(0.01)  # read while it was written
    return {}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
