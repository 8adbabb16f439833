"""Files appear whole: never a part of one, whatever fails or dies."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wsi_stain.files import atomic
from wsi_stain.files.atomic import atomic_write, is_temporary, new_folder, publish, replacing

OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.mark.parametrize("sole", [False, True])
def test_a_block_that_fails_leaves_the_old_file_and_no_temporary(tmp_path: Path, sole: bool) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(OLD)

    def interrupted() -> None:
        with replacing(path, sole=sole) as temporary:
            temporary.write_bytes(NEW)
            assert temporary.parent == tmp_path
            assert path.read_bytes() == OLD, "not before the end"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("sole", [False, True])
def test_a_block_that_ends_replaces_the_file(tmp_path: Path, sole: bool) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(OLD)
    with replacing(path, sole=sole) as temporary:
        temporary.write_bytes(NEW)
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_leaves_the_old_file_and_its_space_is_free_again(tmp_path: Path, monkeypatch) -> None:
    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    path = tmp_path / "x.json"
    path.write_bytes(OLD)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, NEW)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x.json"]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path: Path, monkeypatch) -> None:
    events = []
    replace, fsync = os.replace, os.fsync

    def flushing(handle: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "content")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    atomic_write(tmp_path / "x", NEW)
    assert events == ["content", "rename", "folder"] if os.path.isdir("/proc/self/fd") else "rename" in events
    events.clear()
    atomic_write(tmp_path / "x", NEW, sync=False)
    assert events == ["rename"]


@pytest.mark.parametrize(("number", "is_raised"), [(22, False), (95, False), (38, False), (5, True), (28, True)])
def test_file_systems_that_cannot_flush_are_used_and_failures_to_flush_are_raised(
    tmp_path: Path, monkeypatch, number: int, is_raised: bool
) -> None:
    def failing(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    if is_raised:
        with pytest.raises(OSError, match=os.strerror(number)):
            atomic_write(tmp_path / "x", NEW)
        assert os.listdir(tmp_path) == []
    else:
        atomic_write(tmp_path / "x", NEW)
        assert (tmp_path / "x").read_bytes() == NEW


def test_readers_see_whole_files_while_several_writers_replace_it(tmp_path: Path) -> None:
    path, contents = tmp_path / "x", [bytes([i]) * 200_000 for i in range(3)]
    atomic_write(path, contents[0])
    writers = [
        threading.Thread(target=lambda c=c: [atomic_write(path, c, sync=False) for _ in range(30)]) for c in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(("sole", "pattern"), [(False, ".x.json.*.part"), (True, "x.json.part")])
def test_a_crash_leaves_one_temporary_that_tells_what_it_is(tmp_path: Path, sole: bool, pattern: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(OLD)
    code = (
        "import os, pathlib, signal, sys; from wsi_stain.files.atomic import replacing\n"
        f"with replacing(pathlib.Path({str(path)!r}), sole={sole}) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    left = [p for p in tmp_path.iterdir() if p != path]
    assert len(left) == (1 if sole else 2)
    assert all(p.match(pattern) and p.name.endswith(atomic.SUFFIX) for p in left)
    assert [is_temporary(p) for p in left] == [not sole] * len(left)
    assert path.read_bytes() == OLD
    with replacing(path, sole=sole) as temporary:
        temporary.write_bytes(NEW)
    assert path.read_bytes() == NEW
    assert len(list(tmp_path.iterdir())) == (1 if sole else 3), "a sole writer clears what was left"


def test_text_is_utf_8_and_bytes_of_a_path_that_are_not_become_escapes(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", "Präparat µm " + b"\xe4".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "x").read_text(encoding="utf-8") == "Präparat µm \\udce4"


def test_a_file_that_was_written_elsewhere_is_published(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(NEW)
    (tmp_path / "x").write_bytes(OLD)
    publish(tmp_path / "x.part", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["x"]


def test_a_new_folder_appears_whole_and_without_what_an_interrupted_run_left(tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "stale").write_bytes(OLD)

    def interrupted() -> None:
        with new_folder(tmp_path / "out") as folder:
            assert list(folder.iterdir()) == []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(NEW)
        assert not (tmp_path / "out").exists()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["out", "out/a"]
