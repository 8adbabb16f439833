"""One run per output: a lock file with host, process and its start."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from wsi_stain.errors import OutputError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; one left by a process of this host that is gone is taken over.

    Raises:
        OutputError: another run holds it.
    """
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    while not _create(path, json.dumps(owner)):
        _break_stale(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path, text: str) -> bool:
    """Make the file with its content at once: a lock is never seen empty."""
    temporary = path.with_name(f"tmp-{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):  # held; or swept away by the run that holds it
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _break_stale(path: Path) -> None:
    """Remove the lock of a dead process; raises where it is alive or on another host."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    try:
        owner = json.loads(text)
        host, pid, started = owner["host"], int(owner["pid"]), float(owner["started"])
    except (ValueError, KeyError, TypeError):
        host, pid, started = socket.gethostname(), 0, 0.0  # a lock that nobody can read protects nobody
    if host == socket.gethostname() and not _is_alive(pid, started):
        path.unlink(missing_ok=True)
        return
    raise OutputError(
        f"{path.parent} is in use by process {pid} on {host}: wait for it, "
        f"or delete {path} if you know that it is no longer running"
    )


def _is_alive(pid: int, started: float) -> bool:
    """Whether that very process lives; a process id is used again after a while, so its start counts too."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
