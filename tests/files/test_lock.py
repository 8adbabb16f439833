"""Locks, on file systems with hard links and without."""

import errno
import json
import os
from pathlib import Path

import pytest

from wsi_stain.errors import InUse
from wsi_stain.files import lock


@pytest.fixture(
    params=[None, errno.EPERM, errno.ENOTSUP, errno.ENOSYS], ids=["hard links", "EPERM", "ENOTSUP", "ENOSYS"]
)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system with hard links, or on one that refuses them as exFAT and network mounts do."""
    if request.param is not None:

        def refuse(source: Path, path: Path) -> None:
            raise OSError(request.param, os.strerror(request.param), str(source))

        monkeypatch.setattr(os, "link", refuse)
    return tmp_path


def test_a_lock_is_held_by_one_and_gone_afterwards(folder: Path) -> None:
    path = folder / "lock"
    with lock.locked(path):
        assert lock.holder(path) == lock.this_process()
        with pytest.raises(InUse, match=f"process {os.getpid()}"):
            lock.take(path, lock.this_process())
    assert list(folder.iterdir()) == []


def test_the_lock_of_a_process_that_ended_is_taken_over(folder: Path) -> None:
    path = folder / "lock"
    path.write_text(json.dumps(lock.this_process() | {"started": 1.0}))
    with lock.locked(path):
        assert lock.holder(path) == lock.this_process()


def test_removing_a_lock_spares_another_one_that_took_its_place(folder: Path) -> None:
    path = folder / "lock"
    path.write_text("successor")
    lock.remove(path, "predecessor")
    assert path.read_text() == "successor"


def test_other_errors_of_the_file_system_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="full"):
        lock.take(tmp_path / "lock", lock.this_process())
