"""What filelock 4.3 cannot do, and wsi_stain.files.lock can: the reason for locks of our own.

A test that fails here is good news: look again whether filelock can replace `wsi_stain/files/lock.py`.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from filelock import MarkerSoftFileLock, SoftFileLease, SoftFileLock, SoftFileLockProtocolError, StrictSoftFileLock

from wsi_stain.files.lock import locked


def killed(path: Path, kind: Callable[..., Any]) -> None:
    """Leave the lock of a process of this host that was killed."""
    take = {
        "locked": f"import pathlib; from wsi_stain.files import lock; hold = lock.locked(pathlib.Path({str(path)!r}))",
    }.get(kind.__name__, f"import filelock; hold = filelock.{kind.__name__}({str(path)!r})")
    code = f"import os; {take}\nwith hold: os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS], ids=["EPERM", "ENOTSUP", "ENOSYS"])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links."""

    def refuse(*args: object, **options: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot exchange two names (NFS, exFAT): renameat2(RENAME_EXCHANGE) gives EINVAL."""
    module = pytest.importorskip("filelock._filesystem._exchange")
    monkeypatch.setattr(module, "_rename_call", lambda: (lambda source, target, flags: errno.EINVAL, 2))


@pytest.mark.usefixtures("no_links")
def test_the_strict_lock_needs_hard_links(tmp_path: Path) -> None:
    with pytest.raises((SoftFileLockProtocolError, PermissionError)):
        StrictSoftFileLock(tmp_path / "lock").acquire(timeout=1)
    with locked(tmp_path / "own"):
        pass


def test_the_strict_lock_of_a_killed_process_stays(tmp_path: Path) -> None:
    killed(tmp_path / "lock", StrictSoftFileLock)
    with pytest.raises(filelock.Timeout):
        StrictSoftFileLock(tmp_path / "lock").acquire(timeout=1)


@pytest.mark.skipif(sys.platform != "linux", reason="another way of taking over is used elsewhere")
@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("kind", [SoftFileLock, MarkerSoftFileLock, SoftFileLease])
def test_the_soft_locks_of_a_killed_process_stay_where_names_cannot_be_exchanged(tmp_path: Path, kind: type) -> None:
    killed(tmp_path / "lock", kind)
    with pytest.raises(filelock.Timeout):
        kind(tmp_path / "lock").acquire(timeout=1)


@pytest.mark.usefixtures("no_links", "no_exchange")
def test_ours_needs_neither(tmp_path: Path) -> None:
    killed(tmp_path / "lock", locked)
    assert (tmp_path / "lock").exists()
    with locked(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []
