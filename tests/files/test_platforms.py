"""Nothing needs Linux by construction: what Windows and macOS lack is not used, or is guarded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from builders.conversions import noise, pixels_of, write_slide

import wsi_stain
from wsi_stain.files import atomic, lock

PACKAGE = Path(wsi_stain.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

ABSENT = {
    *(
        "os.fork",
        "os.forkpty",
        "os.getuid",
        "os.geteuid",
        "os.getpgid",
        "os.killpg",
        "os.mkfifo",
        "os.nice",
        "os.pread",
    ),
    *("os.pwrite", "os.register_at_fork", "os.sched_getaffinity", "os.setsid", "os.statvfs", "os.sysconf", "os.uname"),
    *("os.posix_fadvise", "os.posix_fallocate", "os.sendfile", "os.wait", "os.waitpid", "os.fdatasync"),
    *("signal.SIGALRM", "signal.SIGHUP", "signal.SIGKILL", "signal.SIGUSR1", "signal.SIGUSR2", "signal.SIGCHLD"),
    *("signal.pthread_sigmask", "signal.setitimer", "signal.alarm"),
}
"""What Python on Windows lacks (Availability: Unix in its manual)."""
NO_MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "posix")
NEVER = ("os.link", "os.symlink")
"""Need rights or file systems that users may not have; paths have the same as `hardlink_to` and `symlink_to`."""
GUARDED = {
    **{
        ("cli/supervise.py", name): "only called on Linux"
        for name in (
            "os.fork",
            "os.waitpid",
            "signal.SIGCHLD",
            "signal.SIGHUP",
            "signal.SIGKILL",
            "signal.pthread_sigmask",
        )
    },
    ("doctor/machine.py", "resource"): "behind sys.platform",
    ("files/lock.py", "os.sysconf"): "behind sys.platform",
    ("files/record.py", "resource"): "behind os.name",
    ("model/sandbox.py", "resource"): "behind sys.platform",
}


def uses(path: Path) -> set[str]:
    """What a module uses that Windows lacks."""
    result: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names if alias.name in NO_MODULES}
        if isinstance(node, ast.ImportFrom):
            result |= {node.module or ""} & set(NO_MODULES)
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            result |= {name} & {*ABSENT, *NEVER}
            result |= {node.attr} & {"hardlink_to", "symlink_to"}
    return result


def test_what_windows_lacks_is_guarded() -> None:
    actual = {(str(path.relative_to(PACKAGE)), name) for path in SOURCES for name in uses(path)}
    assert actual == set(GUARDED)


def test_text_files_name_their_encoding() -> None:
    # On Windows the default is not UTF-8.
    missing = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("read_text", "write_text") and "encoding" not in {k.arg for k in node.keywords}:
                missing.append(f"{path.name}:{node.lineno}")
    assert missing == []


def test_a_file_that_somebody_reads_is_replaced_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Windows refuses to replace a file that another process has open.
    path, refusals, original = tmp_path / "state.json", [0, 0], os.replace

    def replace(source: Path, target: Path) -> None:
        if refusals:
            refusals.pop()
            raise PermissionError(13, "The process cannot access the file", str(target))
        original(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    with pytest.raises(PermissionError):
        atomic.atomic_write(path, "1")  # elsewhere it is a lasting error, reported at once
    monkeypatch.setattr(atomic, "IS_WINDOWS", True)
    atomic.atomic_write(path, "2")
    assert path.read_text(encoding="utf-8") == "2"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_that_somebody_reads_is_renamed_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, refusals, original = tmp_path / "a.zarr.part", [0, 0], os.replace
    folder.mkdir()

    def replace(source: Path, target: Path) -> None:
        if refusals:
            refusals.pop()
            raise PermissionError(13, "The process cannot access the file", str(target))
        original(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    monkeypatch.setattr(atomic, "IS_WINDOWS", True)
    atomic.rename(folder, tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_lock_that_somebody_reads_is_released_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, original = [0, 0], Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if refusals:
            refusals.pop()
            raise PermissionError(13, "The process cannot access the file", str(path))
        original(path, missing_ok=missing_ok)

    monkeypatch.setattr(atomic, "IS_WINDOWS", True)
    with lock.locked(tmp_path / "lock"):
        monkeypatch.setattr(Path, "unlink", unlink)
    assert (refusals, list(tmp_path.iterdir())) == ([], [])


def test_renames_of_the_package_wait_for_readers() -> None:
    impatient = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)) or node.keywords:
                continue
            name, arguments = ast.unparse(node.func), len(node.args)
            # str.replace takes two arguments, Path.replace one.
            is_rename = name in ("os.rename", "os.replace") or node.func.attr == "rename"
            if name != "atomic.rename" and (is_rename or (node.func.attr == "replace" and arguments == 1)):
                impatient.append(f"{path.relative_to(PACKAGE).as_posix()}: {name}")
    assert impatient == ["files/atomic.py: os.replace"]


def test_a_process_that_the_system_hides_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(lock.sys, "platform", "darwin")
    monkeypatch.setattr(lock.psutil, "Process", refuse)
    assert lock._is_alive(os.getpid(), 0.0)


KEPT = ("os.statvfs", "os.sysconf", "os.wait", "os.waitpid", "posix")
"""What the standard library itself, psutil, and subprocess use on this platform."""
RESTRICTED = """
import asyncio, os, pathlib, signal, sys
from pathlib import Path
# Libraries of this platform may use it; ours is imported afterwards.
import cv2, dask.array, distributed, imagecodecs, psutil, skimage.filters, tifffile, torch, zarr, concurrent.futures
for name in {absent!r}:
    module, _, attribute = name.partition(".")
    if name not in {kept!r}:
        vars(sys.modules[module]).pop(attribute, None)
for name in {modules!r}:
    sys.modules[name] = None
def refuse(*_, **__): raise OSError(1, "hard links and symbolic links are not available")
os.link = os.symlink = pathlib.Path.hardlink_to = pathlib.Path.symlink_to = refuse
really_open = os.open
def open_files_only(path, *rest, **more):
    if os.path.isdir(path): raise PermissionError(13, "folders cannot be opened", path)
    return really_open(path, *rest, **more)
os.open = open_files_only
import wsi_stain.files.atomic as atomic
flush = atomic._flush
atomic._flush = lambda path, flags: None if path.is_dir() else flush(path, flags)
from wsi_stain.cli import main
main(sys.argv[1:])
"""


def restricted(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = RESTRICTED.format(absent=sorted(ABSENT), kept=KEPT, modules=NO_MODULES[:-1])
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_a_slide_is_converted_without_what_windows_lacks(tmp_path: Path) -> None:
    write_slide(tmp_path / "slide.tif", noise(600, 700))
    call = ["convert", "slide.tif", "--model", "identity", "--mask", "none", "--compression", "deflate"]
    result = restricted(*call, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert np.array_equal(pixels_of(tmp_path / "slide.identity.ome.tiff"), noise(600, 700))
    assert restricted(*call, cwd=tmp_path).stderr.count("already done") == 1


def test_a_lease_beats_without_positioned_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsi_stain.cohort.lease import ROOM_BYTES, Lease, read_lease

    monkeypatch.delattr(os, "pwrite", raising=False)
    with Lease(tmp_path / "a.running.json", {"worker": "w"}) as lease:
        first = read_lease(tmp_path / "a.running.json")
        lease.progress = 0.5
        lease._beat()
        second = read_lease(tmp_path / "a.running.json")
        assert (first["progress"], second["progress"]) == (0.0, 0.5)
        assert second["beat"] >= first["beat"]
        assert (tmp_path / "a.running.json").stat().st_size == ROOM_BYTES
    assert list(tmp_path.iterdir()) == []


def test_a_worker_starts_where_signals_have_no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from wsi_stain.cluster.retirement import dask_setup

    async def start() -> None:
        loop = asyncio.get_running_loop()

        def refuse(*_: object) -> None:
            raise NotImplementedError  # as the loop of Windows does

        monkeypatch.setattr(loop, "add_signal_handler", refuse)
        dask_setup(object())

    asyncio.run(start())
