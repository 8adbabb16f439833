"""One run per output: a lock file that names the process that holds it.

    take      create the file, which fails if it exists → write the owner → read it back
    take over only the lock of a process of this host that no longer exists; another host's process cannot be checked

Exclusive creation is the one operation that every file system offers. The locks of filelock 4.3 need more, and are not
used: StrictSoftFileLock needs hard links (exFAT and many network mounts have none) and never takes over the lock of a
killed process; SoftFileLock and SoftFileLease take it over by exchanging two names, which NFS and exFAT refuse; and
their files cannot carry the progress of a slide. `tests/files/test_filelock.py` shows each.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import psutil

from wsi_stain.errors import InUse
from wsi_stain.files.atomic import delete

log = logging.getLogger(__name__)

UNREADABLE_S = 2.0
"""Time for which an unreadable lock must not change before it is removed: its process may still be writing it."""
GUARD_S = 30.0
"""Time for which the removal of a dead lock by another process may take; it takes milliseconds."""


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock file `path`; a lock left by a dead process of this host is taken over.

    Raises:
        InUse: another run holds it.
    """
    text = take(path, this_process())
    try:
        yield
    finally:
        if _text(path) == text:  # a lock that the user deleted may belong to another run by now
            delete(path)


def take(path: Path, owner: Mapping[str, Any]) -> str:
    """Create the lock file; returns its content.

    Args:
        path: of the lock file.
        owner: must contain the keys of `this_process()`, and may contain others.

    Raises:
        InUse: another run holds it.
    """
    content = json.dumps({"token": uuid.uuid4().hex, **owner})
    while (text := _text(path)) != content:
        if text is None:
            _create(path, content)
        elif not (holder := _owner(text)):
            identity = _identity(path)
            if _is_unchanged(path, text, UNREADABLE_S):
                remove(path, text, identity)
        elif is_dead(holder):
            log.warning("%s was left by process %s, which was killed; it is taken over", path, holder.get("pid"))
            remove(path, text)
        else:
            raise InUse(_message(path, holder))
    return content


def this_process() -> dict[str, Any]:
    """The owner of a lock: where it runs, process id, and start time (see `_started`)."""
    return {**_place(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid())}


def holder(path: Path) -> dict[str, Any] | None:
    """The content of the lock file; None if it is missing, empty if it is unreadable."""
    text = _text(path)
    return None if text is None else _owner(text)


def is_foreign(owner: Mapping[str, Any]) -> bool:
    """Whether the process ran on another host or in another container, so that it cannot be checked from here."""
    here = _place()
    return any(owner.get(key, here[key]) != here[key] for key in here)


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the process is known to be dead: it ran on this host and no longer exists. Unreadable owners are dead."""
    try:
        pid, started = int(owner["pid"]), float(owner["started"])
    except (KeyError, ValueError, TypeError):
        return True  # an unreadable lock does not count
    if is_foreign(owner):
        return False
    if "boot" not in owner:  # of a development version, whose start time depends on the clock
        return not psutil.pid_exists(pid)
    return owner["boot"] != _boot() or not _is_alive(pid, started)


def remove_dead(path: Path) -> None:
    """Remove the lock file if its process is known to be dead."""
    text = _text(path)
    if text and is_dead(_owner(text)):
        remove(path, text)


def remove(path: Path, text: str, identity: tuple[int, int] | None = None) -> None:
    """Remove the lock with content `text`, but not a lock that another run has created since.

    Only one process at a time may do this: between its look and its removal, a second one could remove the dead lock,
    and a third one create its own. That process is the one that creates the guard file; if it is killed, the guard of
    the next generation decides.

    Args:
        path: of the lock file.
        text: content of the lock to remove.
        identity: `_identity` of that lock, for a content that is not unique.

    Raises:
        InUse: the process that removes the lock does not end.
    """
    name = f"{path.name}.removing-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    guards: list[Path] = []
    while True:
        guards.append(path.with_name(f"{name}-{len(guards)}"))
        if _create(guards[-1], json.dumps(this_process())):
            break
        if not _is_abandoned(guards[-1]):
            return  # another process has removed it
    try:
        if _text(path) == text and identity in (None, _identity(path)):
            delete(path)
    finally:
        for guard in guards:
            delete(guard)


def _is_abandoned(guard: Path) -> bool:
    """Whether the process that created a guard is dead; waits for the end of a process that is alive."""
    while (text := _text(guard)) is not None:
        owner = _owner(text)
        if owner and is_dead(owner):
            return True
        if _is_unchanged(guard, text, GUARD_S if owner else UNREADABLE_S):
            if owner:
                raise InUse(_message(guard, owner))
            return True
    return False


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from its successor of the same name and content: inode and time of the last change."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _create(path: Path, text: str) -> bool:
    """Create the file with its content; False if it exists."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError:  # a full disk
        delete(path)
        raise
    return True


def _is_unchanged(path: Path, text: str, seconds: float) -> bool:
    """Whether the file keeps its content for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _text(path) != text:
            return False
        time.sleep(0.02)
    return True


def _text(path: Path) -> str | None:
    """The file's text, with invalid UTF-8 replaced; None if the file is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _owner(text: str) -> dict[str, Any]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _message(path: Path, owner: Mapping[str, Any]) -> str:
    place = str(path.parent).removesuffix(".spool")  # of an output's canvas: users know the output
    return (
        f"{place} is in use by process {owner['pid']} on {owner['host']}; wait until it ends, "
        f"or delete {path} if that process is no longer running"
    )


@functools.cache
def _place() -> dict[str, str]:
    """Host and process namespace: containers may share a host name, and number their processes on their own."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        namespace = ""
    return {"host": socket.gethostname(), "namespace": namespace}


@functools.cache
def _boot() -> str:
    """Identity of this start of the machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process exists; process ids are reused, so the start time must match too."""
    try:
        current = _started(pid)
    except psutil.Error:
        return psutil.pid_exists(pid)  # systems and clusters may hide the processes of other users
    return current is not None and abs(current - started) < 0.05


def _started(pid: int) -> float | None:
    """Start time of a process; None for a zombie.

    On Linux s since the machine started, so that it does not change when the clock is set. Elsewhere s since the epoch,
    which the system stored when the process started.
    """
    if sys.platform != "linux":
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    try:
        # The name in parentheses may contain spaces; behind it are the fields 3 (state) to 52 (proc_pid_stat(5)).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as err:
        raise psutil.NoSuchProcess(pid) from err
    return None if fields[0] == b"Z" else int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")
