"""Locks, on file systems with hard links and without."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
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


@pytest.fixture
def dead() -> dict[str, Any]:
    """The owner of a lock whose process was killed."""
    code = "import json, time; from wsi_stain.files import lock; print(json.dumps(lock.this_process()))"
    return json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))


def test_a_lock_is_held_by_one_and_gone_afterwards(folder: Path) -> None:
    path = folder / "lock"
    with lock.locked(path):
        holder = lock.holder(path)
        assert holder
        assert lock.this_process().items() <= holder.items()
        with pytest.raises(InUse, match=f"process {os.getpid()} on .*; wait until it ends, or delete {path}"):
            lock.take(path, lock.this_process())
    assert list(folder.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_that_is_told(folder: Path, dead, caplog) -> None:
    path = folder / "lock"
    path.write_text(json.dumps(dead))
    start = time.monotonic()
    with caplog.at_level(logging.WARNING), lock.locked(path):
        assert (lock.holder(path) or {})["pid"] == os.getpid()
    assert time.monotonic() - start < lock.UNREADABLE_S
    assert f"{path} was left by process {dead['pid']}, which was killed" in caplog.text
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "is_dead"),
    [
        ({}, False),
        ({"started": 1.0}, True),  # the process id was given to another process
        ({"boot": "another start of the machine"}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "started": 1.0, "boot": "its own"}, False),
        ({"namespace": "pid:[1]", "started": 1.0}, False),  # a container with the same host name
        ({"pid": "x"}, True),
    ],
)
def test_only_what_can_be_checked_from_here_is_known_to_be_dead(
    tmp_path: Path, changes: dict[str, Any], is_dead: bool
) -> None:
    owner = lock.this_process() | changes
    assert lock.is_dead(owner) == is_dead
    path = tmp_path / "lock"
    path.write_text(json.dumps(owner))
    if is_dead:
        with lock.locked(path):
            pass
    else:
        with pytest.raises(InUse, match=f"on {owner['host']}; wait .* or delete"), lock.locked(path):
            pass
        assert json.loads(path.read_text()) == owner


@pytest.mark.skipif(sys.platform != "linux", reason="the clock changes no start time elsewhere")
def test_a_change_of_the_clock_kills_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = lock.this_process()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() + 1e4)
    assert not lock.is_dead(owner)


def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = lock.this_process()

    def hidden(pid: int) -> float:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(lock, "_started", hidden)
    assert not lock.is_dead(owner)
    assert lock.is_dead(owner | {"pid": 1 << 22})


def test_a_zombie_is_dead() -> None:
    code = "import json, sys; from wsi_stain.files import lock; print(json.dumps(lock.this_process()), flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        owner = json.loads(process.stdout.readline())
        process.stdout.read()  # until it has ended; nobody has asked for its exit code yet
        end = time.monotonic() + 20
        while not lock.is_dead(owner) and time.monotonic() < end:
            time.sleep(0.01)
        assert lock.is_dead(owner)


@pytest.mark.parametrize("content", ["", "{", "null"])
def test_a_lock_that_cannot_be_read_is_removed_only_if_it_stays_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(lock, "UNREADABLE_S", 0.3)
    path = folder / "lock"
    path.write_text(content)
    start = time.monotonic()
    with lock.locked(path):
        assert time.monotonic() - start >= 0.3
    path.write_text(content)
    slow = threading.Timer(0.1, lambda: path.write_text(json.dumps(lock.this_process() | {"host": "slow"})))
    slow.start()
    with pytest.raises(InUse, match="on slow"):
        lock.take(path, lock.this_process())
    slow.join()


def test_of_many_that_take_the_lock_of_a_dead_process_one_gets_it(folder: Path, dead: dict[str, Any]) -> None:
    path, holders, most, guard = folder / "lock", [0], [0], threading.Lock()
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(20):
            try:
                with lock.locked(path):
                    with guard:
                        holders[0] += 1
                        most[0] = max(most[0], holders[0])
                    time.sleep(0.001)
                    with guard:
                        holders[0] -= 1
            except InUse:
                time.sleep(0.001)

    path.write_text(json.dumps(dead))
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most[0] == 1
    assert list(folder.iterdir()) == []


def test_a_holder_does_not_remove_the_lock_of_its_successor(folder: Path) -> None:
    path = folder / "lock"
    with lock.locked(path):
        path.write_text("successor")  # after the user deleted the lock
    assert path.read_text() == "successor"


def test_removing_a_lock_spares_another_one_that_took_its_place(folder: Path) -> None:
    path = folder / "lock"
    path.write_text("successor")
    lock.remove(path, "predecessor")
    assert path.read_text() == "successor"
    lock.remove(path, "successor")
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_raised_and_leaves_no_lock(tmp_path: Path) -> None:
    if not hasattr(signal, "SIGXFSZ"):
        pytest.skip("no limit of file sizes on this system")
    code = (
        "import pathlib, resource, signal, sys; from wsi_stain.files import lock\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        f"lock.take(pathlib.Path({str(tmp_path / 'lock')!r}), lock.this_process())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "File too large" in result.stderr
    assert list(tmp_path.iterdir()) == []


def guard_of(path: Path, text: str, generation: int) -> Path:
    return path.with_name(f"lock.removing-{hashlib.sha256(text.encode()).hexdigest()[:12]}-{generation}")


def test_a_late_removal_never_moves_the_lock_of_the_successor(folder: Path, dead: dict[str, Any]) -> None:
    path, end, intruders = folder / "lock", threading.Event(), []

    def intrude() -> None:
        while not end.is_set():
            with contextlib.suppress(InUse), lock.locked(path):
                intruders.append(1)

    with lock.locked(path):  # the successor of a dead process
        thread = threading.Thread(target=intrude)
        thread.start()
        for _ in range(200):
            lock.remove(path, json.dumps(dead))  # of a process that saw the dead lock before
        end.set()
        thread.join()
    assert intruders == []


def test_a_killed_removal_does_not_keep_the_lock_from_anyone(folder: Path, dead: dict[str, Any]) -> None:
    path, text = folder / "lock", json.dumps(dead)
    path.write_text(text)
    guard_of(path, text, 0).write_text(text)
    guard_of(path, text, 1).write_text(text)
    with lock.locked(path):
        assert list(folder.iterdir()) == [path]


def test_a_running_removal_is_waited_for_and_a_stuck_one_is_named(
    folder: Path, dead: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, text = folder / "lock", json.dumps(dead)
    path.write_text(text)
    guard = guard_of(path, text, 0)
    guard.write_text(json.dumps(lock.this_process()))
    threading.Timer(0.2, guard.unlink).start()
    with lock.locked(path):
        pass
    path.write_text(text)
    guard.write_text(json.dumps(lock.this_process()))
    monkeypatch.setattr(lock, "GUARD_S", 0.2)
    with pytest.raises(InUse, match="removing"):
        lock.take(path, lock.this_process())
