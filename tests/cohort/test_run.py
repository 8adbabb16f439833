"""A whole cohort: who is killed, what is resumed, and what is said."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from builders.cohorts import names, request_of, write_large, write_slides
from distributed import LocalCluster, get_worker

from wsi_stain.cohort import task as task_module
from wsi_stain.cohort.check import checked
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.lease import read_lease
from wsi_stain.cohort.request import to_convert
from wsi_stain.cohort.run import run
from wsi_stain.cohort.status import overview
from wsi_stain.cohort.worker_loss import death
from wsi_stain.conversion import engine
from wsi_stain.conversion.painter import stain_block
from wsi_stain.errors import ConfigError, InsufficientResources, InUse
from wsi_stain.files import lock, record

PATIENCE_S = 120
"""How long a test waits for something to happen on a busy machine."""


@pytest.fixture(scope="module")
def address():
    """A scheduler with two workers of two threads, all in this process: nothing has to start, and patches are seen."""
    options = {"processes": False, "protocol": "tcp", "dashboard_address": ":0", "worker_dashboard_address": ":0"}
    with LocalCluster(n_workers=2, threads_per_worker=2, silence_logs=50, **options) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def slides(tmp_path) -> Path:
    return write_slides(tmp_path / "slides", 3)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def stains(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.ome.tiff")}


def by_hand(sheet: Path, folder: Path) -> dict[str, bytes]:
    """The stains of the same slides by plain conversions."""
    folder.mkdir()
    request = request_of(sheet, folder)
    for row in checked(request):
        engine.convert(to_convert(request, row, 0))
    return stains(folder)


def failing_on(name: str, error: Exception, times: int = 1 << 30):
    """The engine's convert, which fails on one slide."""
    real, calls = task_module.convert, []

    def convert(request, progress):
        if request.slide.stem == name and len(calls) < times:
            calls.append(1)
            raise error
        return real(request, progress)

    return convert


def test_a_cohort_is_what_plain_conversions_are_and_a_second_run_does_nothing(slides, out, address, tmp_path):
    events = []
    result = run(request_of(slides, out, scheduler=address), events.append)
    assert (result.done, result.total, result.failed, result.is_complete) == (3, 3, {}, True)
    assert [event.kind for event in events] == ["begin", "done", "done", "done", "end"]
    assert {event.slide_id for event in events if event.kind == "done"} == {"s0", "s1", "s2"}
    assert stains(out) == by_hand(slides, tmp_path / "plain")
    each = ("account.json", "identity.ome.tiff", "identity.ome.tiff.run.json")
    rest = ["cohort.json", "summary.csv", "summary.html"]
    assert names(out) == sorted([f"s{n}.{end}" for n in range(3) for end in each] + rest)
    before = {path: path.stat().st_mtime_ns for path in out.glob("s?.*")}
    shutil.rmtree(slides)  # archived: a done slide need not be there any more
    slides.mkdir()
    write_slides(slides, 3)
    events.clear()
    assert run(request_of(slides, out), events.append).is_complete, "no workers are started where nothing is to do"
    assert [event.kind for event in events] == ["begin", "end"]
    assert {path: path.stat().st_mtime_ns for path in out.glob("s?.*")} == before


def test_a_bad_slide_fails_alone_and_is_tried_again_only_if_asked(slides, out, address, monkeypatch):
    (slides / "s1.tif").rename(slides / "aside")
    (slides / "s1.tif").write_bytes((slides / "aside").read_bytes())
    monkeypatch.setattr(task_module, "convert", failing_on("s1", ConfigError("this slide is cursed")))
    request = request_of(slides, out, scheduler=address)
    result = run(request)
    assert (result.done, result.failed, result.is_complete) == (2, {"s1": "this slide is cursed"}, False)
    assert "this slide is cursed" in (out / "summary.html").read_text()
    monkeypatch.undo()
    again = run(request)
    assert (again.done, again.failed) == (2, {"s1": "this slide is cursed"})
    (slides / "s1.tif").write_text("cut off")  # a failed slide is not opened when the sheet is checked: it fails alone
    result = run(request_of(slides, out, scheduler=address, retry_failed=True))
    assert "s1.tif has an unsupported format" in result.failed["s1"]
    (slides / "aside").rename(slides / "s1.tif")
    assert run(request_of(slides, out, scheduler=address, retry_failed=True)).is_complete
    assert not list(out.glob("*.failed.json"))


def test_what_may_pass_is_tried_again(slides, out, address, monkeypatch):
    monkeypatch.setattr(task_module, "convert", failing_on("s1", OSError(5, "Input/output error"), times=2))
    events = []
    assert run(request_of(slides, out, scheduler=address), events.append).is_complete
    assert [(e.kind, e.slide_id) for e in events if e.kind == "retry"] == [("retry", "s1")] * 2
    assert "Input/output error" in next(e.text for e in events if e.kind == "retry")


def test_a_full_disk_is_tried_again_by_the_next_run(slides, out, address, monkeypatch):
    monkeypatch.setattr(task_module, "convert", failing_on("s1", InsufficientResources("the disk is full: make room")))
    assert run(request_of(slides, out, scheduler=address)).failed == {"s1": "the disk is full: make room"}
    monkeypatch.undo()
    assert run(request_of(slides, out, scheduler=address)).is_complete


def test_settings_that_differ_from_a_finished_output_are_refused_before_anything_runs(slides, out, address):
    run(request_of(slides, out, scheduler=address))
    with pytest.raises(ConfigError, match=r"s0.identity.ome.tiff was converted with different .*settings \(config\)"):
        run(request_of(slides, out, "convert.output.quality=80", scheduler=address))
    (slides / "s2.tif").write_bytes(b"another slide")
    with pytest.raises(ConfigError, match=r"line 3 .* \(source_bytes\)"):
        run(request_of(slides, out, scheduler=address))


def test_two_runs_on_one_folder_exclude_each_other(slides, out, address, monkeypatch):
    refused = []
    real = task_module.convert

    def meddling(request, progress):
        if not refused:
            with pytest.raises(InUse, match=f"process {os.getpid()} on .*--break-stale-locks") as error:
                run(request_of(slides, out))
            refused.append(error)
            with pytest.raises(InUse):
                run(request_of(slides, out, shard=(1, 2)))
        return real(request, progress)

    monkeypatch.setattr(task_module, "convert", meddling)
    assert run(request_of(slides, out, scheduler=address)).is_complete
    assert refused


def test_shares_run_beside_each_other_and_fill_one_account(slides, out, address):
    out.mkdir()
    lock.take(out / "cohort.2-of-2.lock", lock.this_process())  # its twin, at work
    result = run(request_of(slides, out, shard=(1, 2), scheduler=address))
    assert (result.done, result.total) == (2, 2)
    assert [state.state for _, state in overview(out).slides] == ["done", "waiting", "done"]
    with pytest.raises(InUse):
        run(request_of(slides, out, scheduler=address))
    (out / "cohort.2-of-2.lock").unlink()
    assert run(request_of(slides, out, rows=(2,), scheduler=address)).is_complete
    assert overview(out).counts == {"done": 3}


def test_locks_of_the_dead_are_broken_and_those_of_other_hosts_only_if_asked(slides, out, address):
    out.mkdir()
    owner = {"host": lock.this_process()["host"], "pid": 1 << 22, "started": 0.0}
    (out / "cohort.lock").write_text(json.dumps(owner))
    assert run(request_of(slides, out, rows=(1,), scheduler=address)).is_complete
    (out / "cohort.lock").write_text(json.dumps(owner | {"host": "elsewhere"}))
    with pytest.raises(InUse, match="elsewhere"):
        run(request_of(slides, out, scheduler=address))
    assert run(request_of(slides, out, scheduler=address, break_stale_locks=True)).is_complete


painters: set[str] = set()


def noting_block(job, block):
    """Paints a block and notes who did it; of the module, since Dask would give workers copies of others."""
    painters.add(get_worker().address)
    return stain_block(job, block)


@pytest.mark.slow
def test_large_slides_go_to_all_workers_and_are_the_same(tmp_path, out, address, monkeypatch):
    slide = write_large(tmp_path / "large.tif", 6, 6)
    painters.clear()
    monkeypatch.setattr(engine, "stain_block", noting_block)
    assert run(request_of(slide, out, "split_over=0.001", scheduler=address)).is_complete
    assert len(painters) == 2
    monkeypatch.undo()
    assert stains(out) == by_hand(slide, tmp_path / "plain")


# Killed --------------------------------------------------------------------------------------------------------------


def until(found, what: str):
    """Wait for something."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.002)
    raise AssertionError(f"waited {PATIENCE_S} s for {what}")


def painted(folder: Path) -> list[Path]:
    return list(folder.glob("*.spool/b_*"))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_loses_nothing(tmp_path, out):
    """With Ctrl-C afterwards, since a cluster of processes takes a while to start."""
    slide = write_large(tmp_path / "large.tif", 12, 12)
    (tmp_path / "cluster.yaml").write_text("workers: [1, 1]\ncores: 1\n")
    events, before = [], []

    def kill() -> None:
        lease = until(lambda: painted(out) and read_lease(out / "large.running.json"), "a painted block")
        before.extend(painted(out))
        os.kill(lease["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(request_of(slide, out, cluster=tmp_path / "cluster.yaml"), events.append)
    killer.join()
    assert result.is_complete
    again = next(event for event in events if event.kind == "retry")
    assert "was lost on slide large: its process was killed" in again.text
    conversion = record.read(out / "large.identity.ome.tiff.run.json")
    assert conversion["blocks"]["painted_in_this_run"] <= 144 - len(before)
    assert stains(out) == by_hand(slide, tmp_path / "plain")


def command(*arguments: object) -> list[str]:
    quick = ["--model", "identity", "--mask", "none", "--set", "convert.grid.block=512", "--set", "stop_s=2"]
    return [sys.executable, "-m", "wsi_stain", "cohort", "run", *map(str, arguments), *quick]


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGINT))],
    ids=lambda n: n.name,
)
def test_a_whole_run_that_is_ended_is_resumed_inside_the_slide(tmp_path, out, number, address):
    slide = write_large(tmp_path / "large.tif", 12, 12)
    process = subprocess.Popen(command(slide, "-o", out), stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: len(painted(out)) > 2, "painted blocks")
    worker = read_lease(out / "large.running.json")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal tells the whole group
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    until(lambda: lock.is_dead(worker), "the worker's end")
    before = len(painted(out))
    assert 2 < before < 144, "too fast or too slow to be interrupted"
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted; re-run the same command to resume" in err.splitlines()[-1]
        assert "Traceback" not in err
        assert not list(out.glob("*.lock")) + list(out.glob("*.running.json"))
    row, state = overview(out).slides[0]
    assert state.state == "interrupted"
    result = run(request_of(slide, out, scheduler=address))
    assert result.is_complete
    assert record.read(record.path_of(Folder(out).output(row)))["blocks"]["painted_in_this_run"] <= 144 - before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    conversion = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if conversion.returncode:
        pytest.skip("a small file system cannot be mounted here: root is needed")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_is_a_sentence(tmp_path, small_disk, address, monkeypatch):
    slides = write_slides(tmp_path / "slides", 3)
    shutil.copy(write_large(tmp_path / "x.tif", 6, 6), slides / "s1.tif")
    monkeypatch.setattr(engine, "check_resources", lambda conversion: None)  # as where others fill the disk meanwhile
    out = small_disk / "out"
    result = run(request_of(slides, out, scheduler=address))
    assert "s1" in result.failed
    assert all("is full" in reason and "re-run the same command" in reason for reason in result.failed.values())
    assert result.done + len(result.failed) == 3
    kept = len(list(out.glob("s1.*.spool/b_*")))
    assert kept > 3
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert run(request_of(slides, out, scheduler=address)).is_complete
    conversion = record.read(out / "s1.identity.ome.tiff.run.json")
    assert conversion["blocks"]["painted_in_this_run"] == 36 - kept
    assert stains(out) == by_hand(slides, tmp_path / "plain")


class Worker:
    address, memory_limit = "tcp://node7:4711", 8 * 10**9


@pytest.mark.parametrize(
    ("events", "lease", "words"),
    [
        (
            [(0, {"worker": Worker.address})],
            {},
            "memory limit 8 GB on slide s7: raise `memory` in the cluster file",
        ),
        ([], {"worker": Worker.address, "memory": 7.9e9}, "memory limit"),
        ([], {"worker": "tcp://another:1", "memory": 7.9e9}, "node7:4711 was lost on slide s7"),
        ([(0, {"worker": "tcp://another:1"})], {"worker": Worker.address, "memory": 1e9}, "was lost on slide s7"),
    ],
)
def test_a_worker_s_death_is_told_in_the_user_s_words(events, lease, words):
    assert words in death("s7", Worker(), events, lease)


def test_faulty_rows_fail_with_their_reasons_and_the_others_run(tmp_path):
    write_slides(tmp_path, 2)
    (tmp_path / "text.tif").write_text("not a slide" * 50)
    lines = ["slide,slide_id,mpp", "s0.tif,a,", "gone.tif,b,", "text.tif,c,", "s1.tif,d,fast", "s1.tif,A,", "s1.tif,e,"]
    (tmp_path / "sheet.csv").write_text("\n".join(lines))
    request = request_of(tmp_path / "sheet.csv", tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing was started"):
        run(dataclasses.replace(request, strict=True))
    assert not (tmp_path / "out").exists()
    result = run(request)
    assert (result.total, result.done) == (6, 2)
    reasons = {
        "b": "no such file",
        "c": "unsupported format",
        "d": "mpp is 'fast'",
        "unnamed-line-6": "also used in line 2",
    }
    assert result.failed.keys() == reasons.keys()
    folder = Folder(tmp_path / "out")
    for row in folder.rows():
        state = folder.state(row)
        assert state.state == ("failed" if row.slide_id in reasons else "done")
        assert reasons.get(row.slide_id, "") in state.reason
    with (tmp_path / "out" / "summary.csv").open(encoding="utf-8", newline="") as file:
        assert sorted(line["state"] for line in csv.DictReader(file)) == ["done", "done", *["failed"] * 4]
    write_slides(tmp_path, 2)
    (tmp_path / "sheet.csv").write_text("\n".join([*lines[:2], "s1.tif,b,", *lines[6:]]))
    assert run(request).failed.keys() == {"b"}, "a failure is tried again when the user says so"
    assert run(dataclasses.replace(request, retry_failed=True)).is_complete


@pytest.mark.slow
def test_a_replaced_slide_is_not_taken_for_done_and_a_copied_one_is(tmp_path):
    slides = write_slides(tmp_path / "slides", 1)
    request = request_of(slides, tmp_path / "out")
    assert run(request).is_complete
    path = slides / "s0.tif"
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert run(request).is_complete, "the same pixels at another time"
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"different inputs or settings \(source_sha256\)"):
        run(request)
