"""One run per output: a lock file with host, process id and start time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import psutil

from wsi_stain.errors import InUse

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What `link` reports on file systems that have no hard links (EPERM: link(2))."""
UNREADABLE_S = 0.05
"""Pause before an unreadable lock is removed: a lock that is still being written becomes readable in that time."""


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock file `path`; a lock left by a dead process of this host is taken over.

    Raises:
        InUse: another run holds it.
    """
    take(path, this_process())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def take(path: Path, owner: Mapping[str, Any]) -> None:
    """Create the lock file; `owner` must contain the keys of `this_process()`, and may contain others.

    Raises:
        InUse: another run holds it.
    """
    while not _create(path, json.dumps(owner)):
        text = _text(path)
        if text and not is_dead(_owner(text)):
            raise InUse(_message(path, _owner(text)))
        if not _owner(text):
            time.sleep(UNREADABLE_S)
        remove(path, text)


def this_process() -> dict[str, Any]:
    """The owner of a lock: host, process id and start time (s since the epoch)."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def holder(path: Path) -> dict[str, Any] | None:
    """The content of the lock file; None if it is missing, empty if it is unreadable."""
    text = _text(path)
    return _owner(text) if text else None


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the process is known to be dead: it ran on this host and no longer exists. Unreadable owners are dead."""
    try:
        host, pid, started = owner["host"], int(owner["pid"]), float(owner["started"])
    except (KeyError, ValueError, TypeError):
        return True  # an unreadable lock does not count
    return host == socket.gethostname() and not _is_alive(pid, started)


def remove_dead(path: Path) -> None:
    """Remove the lock file if its process is known to be dead."""
    text = _text(path)
    if text and is_dead(_owner(text)):
        remove(path, text)


def remove(path: Path, text: str) -> None:
    """Remove the lock with content `text`, but not a lock that another run has created since."""
    aside = path.with_name(f"tmp-{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _text(aside) != text:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            _link(aside, path)
    aside.unlink(missing_ok=True)


def _create(path: Path, text: str) -> bool:
    """Create the file together with its content; False if another run holds it."""
    temporary = path.with_name(f"tmp-{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    try:
        _link(temporary, path)
    except (FileExistsError, FileNotFoundError):  # held by another run, or deleted by its sweep
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _link(source: Path, path: Path) -> None:
    """Give the file `source` the name `path` as well; FileExistsError if the name is taken.

    File systems without hard links (exFAT, many network mounts) get a copy: it is created exclusively, and may be seen
    empty until it is written, which is why `take` waits before it removes a lock that it cannot read.
    """
    try:
        os.link(source, path)
    except OSError as err:
        if err.errno not in NO_HARD_LINKS:
            raise
        with path.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8", errors="replace"))


def _text(path: Path) -> str:
    """The file's text, with invalid UTF-8 replaced; empty if the file is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _owner(text: str) -> dict[str, Any]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _message(path: Path, owner: Mapping[str, Any]) -> str:
    return (
        f"{path.parent} is in use by process {owner['pid']} on {owner['host']}; wait until it ends, "
        f"or delete {path} if that process is no longer running"
    )


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process exists; process ids are reused, so the start time must match too."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
