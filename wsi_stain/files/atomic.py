"""Files that appear whole: everything that wsi-stain writes under a name that others read.

The promise: a reader sees the old file or the new one, never a part. The new content is written under a temporary name
in the same folder, flushed to the disk, and renamed. If that fails, the temporary is removed and the old file remains.
A crash leaves at most one temporary per file, and its name ends in `.part`.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".part"
"""End of every temporary name."""
OLD = ".old"
"""End of the name of a folder while another takes its place."""
IS_WINDOWS = os.name == "nt"
PATIENCE_S = (0.01, 0.05, 0.2, 1.0)
"""Waits between attempts to replace a file that another process has open, which Windows refuses."""
NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""What `fsync` reports on file systems that cannot flush (fsync(2))."""


def atomic_write(path: Path, data: bytes | str, *, sole: bool = False, sync: bool = True) -> None:
    """Write a file that appears whole; if several processes write it, the last one wins.

    Args:
        path: the file; it may exist.
        data: its content. Text is encoded as UTF-8. Bytes of a path that are not UTF-8 become the escapes of Python,
            JSON and Groovy (backslash, u, four digits), so that JSON gives the path back.
        sole: whether this process alone writes the file; see `replacing`.
        sync: whether the content must survive a power failure. Without it the file may be empty afterwards; pass False
            only if the reader verifies the content.

    Raises:
        OSError: the file cannot be written; the old one remains.
    """
    content = data.encode("utf-8", errors="backslashreplace") if isinstance(data, str) else data
    with replacing(path, sole=sole, sync=sync) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path, *, sole: bool = False, sync: bool = True) -> Generator[Path]:
    """The temporary file to write; it takes the name `path` at the end of the block, or is removed if the block raises.

    Args:
        path: the file; it may exist.
        sole: whether no other process writes the file at the same time. The temporary is then `<name>.part`, which the
            next write overwrites, so a large file that is killed often leaves one temporary. Otherwise it is
            `.<name>.<random>.part`.
        sync: see `atomic_write`.

        with replacing(path) as temporary:
            image.save(temporary)
    """
    temporary = path.with_name(path.name + SUFFIX if sole else f".{path.name}.{uuid.uuid4().hex[:8]}{SUFFIX}")
    try:
        yield temporary
        publish(temporary, path, sync=sync)
    finally:
        with suppress(OSError):  # also frees space on a full disk; the error of the block is the one to raise
            temporary.unlink()


def publish(temporary: Path, path: Path, *, sync: bool = True) -> None:
    """Give a complete file in the same folder its final name, after its content is on the disk."""
    if sync:
        _flush(temporary, os.O_RDWR)
    rename(temporary, path)
    if sync and os.name == "posix":  # Windows cannot open folders
        _flush(path.parent, os.O_RDONLY)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """The temporary folder `<name>.part` to fill; at the end of the block it takes the name `path`, which must be free.

    What an earlier, interrupted run left under the temporary name is deleted first.
    """
    temporary = path.with_name(path.name + SUFFIX)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Give a complete folder, whose files are on the disk, its final name; a folder of that name is removed.

    Killed at any point, a call with the folder written anew ends in the same state; what was replaced may remain as
    `<name>.old` until then.
    """
    old = path.with_name(path.name + OLD)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a run that was killed here
        rename(path, old)
    rename(temporary, path)
    if os.name == "posix":
        _flush(path.parent, os.O_RDONLY)
    shutil.rmtree(old, ignore_errors=True)


def is_temporary(path: Path) -> bool:
    """Whether the file is a temporary that several processes may write (`.<name>.<random>.part`)."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


def rename(source: Path, target: Path) -> None:
    """Rename a file or a folder; a file of the new name is replaced, a folder may not exist."""
    _patiently(lambda: os.replace(source, target))


def delete(path: Path) -> None:
    """Delete a file that other processes may read; it may be missing."""
    _patiently(lambda: path.unlink(missing_ok=True))


def _patiently(act: Callable[[], None]) -> None:
    """On Windows, wait for a reader (or a virus scanner) that has the file, or a file of the folder, open."""
    for wait_s in PATIENCE_S if IS_WINDOWS else ():
        try:
            act()
        except PermissionError:
            time.sleep(wait_s)
        else:
            return
    act()


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in NO_SYNC:
            raise
    finally:
        os.close(handle)
