"""One run per output: a lock file with host, process and its start."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from wsi_stain.errors import InUse

UNREADABLE_S = 0.05
"""Pause before a lock that cannot be read is removed: if it was read while it was written, it says more by then."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; one left by a process of this host that is gone is taken over.

    Raises:
        InUse: another run holds it.
    """
    take(path, this_process())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def take(path: Path, owner: Mapping[str, Any]) -> None:
    """Make the lock file; what `this_process()` says must be in it, and anything else may.

    Raises:
        InUse: another run holds it.
    """
    while not _create(path, json.dumps(owner)):
        text = _text(path)
        if text and not is_dead(_owner(text)):
            raise InUse(_sentence(path, _owner(text)))
        if not _owner(text):
            time.sleep(UNREADABLE_S)
        remove(path, text)


def this_process() -> dict[str, Any]:
    """Who locks: host, process id and when it started."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def holder(path: Path) -> dict[str, Any] | None:
    """What the lock file says; None where there is none, empty where nobody can read it."""
    text = _text(path)
    return _owner(text) if text else None


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the process is provably gone: it was on this host, and is not there. An unreadable owner is nobody."""
    try:
        host, pid, started = owner["host"], int(owner["pid"]), float(owner["started"])
    except (KeyError, ValueError, TypeError):
        return True  # a lock that nobody can read protects nobody
    return host == socket.gethostname() and not _is_alive(pid, started)


def remove_dead(path: Path) -> None:
    """Remove the lock file if its process is provably gone."""
    text = _text(path)
    if text and is_dead(_owner(text)):
        remove(path, text)


def remove(path: Path, text: str) -> None:
    """Remove the lock that says `text`, and not one that another run made in the meantime."""
    aside = path.with_name(f"tmp-{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _text(aside) != text:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


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


def _text(path: Path) -> str:
    """What the file says, also where it says nothing that can be understood; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _owner(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _sentence(path: Path, owner: Mapping[str, Any]) -> str:
    return (
        f"{path.parent} is in use by process {owner['pid']} on {owner['host']}: wait for it, "
        f"or delete {path} if you know that it is no longer running"
    )


def _is_alive(pid: int, started: float) -> bool:
    """Whether that very process lives; a process id is used again after a while, so its start counts too."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
