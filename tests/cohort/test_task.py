"""One slide in a worker: whatever goes wrong is told, recorded, and harms nothing."""

import errno
import gc
import itertools
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders.cohorts import names, request_of, write_large, write_slides

from wsi_stain.cohort import lease as lease_module
from wsi_stain.cohort import task as module
from wsi_stain.cohort.check import checked
from wsi_stain.cohort.files import Folder
from wsi_stain.cohort.task import SlideTask, convert_slide
from wsi_stain.errors import InsufficientResources, OutputError, WorkersLost
from wsi_stain.files import lock, record
from wsi_stain.files.atomic import atomic_write
from wsi_stain.model.bundle import IdentityGenerator


def task_of(slides: Path, folder: Path, **options) -> SlideTask:
    """The task of the first slide."""
    folder.mkdir(exist_ok=True)
    request = request_of(slides, folder)
    return SlideTask(request, checked(request)[0], blocks=1, **options)


@pytest.fixture
def task(tmp_path) -> SlideTask:
    return task_of(write_slides(tmp_path / "slides", 1), tmp_path / "out")


@pytest.fixture
def large(tmp_path, monkeypatch) -> SlideTask:
    """A slide of nine blocks, whose worker looks at its lease after each."""
    monkeypatch.setattr(lease_module, "LOOK_S", 0.0)
    return task_of(write_large(tmp_path / "s0.tif", 3, 3), tmp_path / "out")


def state_of(task: SlideTask):
    return Folder(task.request.folder).state(task.row)


def raising(error):
    def convert(request, progress):
        raise error

    return convert


def test_a_slide_leaves_its_stain_its_record_and_its_account(task):
    outcome = convert_slide(task)
    assert outcome.ending == "done"
    assert names(task.request.folder) == ["s0.account.json", "s0.identity.ome.tiff", "s0.identity.ome.tiff.run.json"]
    assert state_of(task).state == "done"


def test_a_failure_of_the_slide_is_recorded_with_its_traceback(task, monkeypatch):
    monkeypatch.setattr(module, "convert", raising(OutputError("this slide is damaged")))
    assert convert_slide(task).ending == "failed"
    failed = record.read(task.request.folder / "s0.failed.json")
    assert failed["reason"] == "this slide is damaged"
    assert "Traceback" in failed["traceback"]
    state = state_of(task)
    assert (state.state, state.reason, state.is_retried) == ("failed", failed["reason"], False)
    assert names(task.request.folder) == ["s0.failed.json"]
    monkeypatch.undo()
    assert convert_slide(task).ending == "done"
    assert "s0.failed.json" not in names(task.request.folder)


def test_a_mistake_of_the_software_is_recorded_and_does_not_spread(task, monkeypatch):
    monkeypatch.setattr(module, "convert", raising(ZeroDivisionError("division by zero")))
    outcome = convert_slide(task)
    assert outcome.ending == "failed"
    assert "report it" in outcome.reason


def test_lost_workers_of_a_distributed_slide_are_no_bug_and_given_another_try(task, monkeypatch):
    monkeypatch.setattr(module, "convert", raising(WorkersLost("4 workers died")))
    assert convert_slide(SlideTask(task.request, task.row, 1, 1)).ending == "may pass"
    assert convert_slide(SlideTask(task.request, task.row, 1, 3)).ending == "failed"
    assert record.read(task.request.folder / "s0.failed.json")["reason"] == "4 workers died"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_file_system_is_given_another_try_and_then_it_is_a_failure(task, monkeypatch, wrapped):
    error: Exception = OSError(errno.ESTALE, "Stale file handle", "s0.tif")
    if wrapped:
        cause, error = error, OutputError("cannot read s0.tif")
        error.__cause__ = cause
    monkeypatch.setattr(module, "convert", raising(error))
    for attempt in (1, 2):
        assert convert_slide(SlideTask(task.request, task.row, 1, attempt)).ending == "may pass"
        assert state_of(task).state == "waiting"
    assert convert_slide(SlideTask(task.request, task.row, 1, 3)).ending == "failed"
    assert record.read(task.request.folder / "s0.failed.json")["attempts"] == 3


@pytest.mark.parametrize("error", [InsufficientResources("no room"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_full_disk_is_no_fault_of_the_slide(task, monkeypatch, error):
    monkeypatch.setattr(module, "convert", raising(error))
    assert convert_slide(task).ending == "no room"
    assert (state_of(task).state, state_of(task).is_retried) == ("failed", True)


def test_a_failure_that_cannot_even_be_recorded_is_told(task, monkeypatch):
    monkeypatch.setattr(module, "convert", raising(OSError(errno.ENOSPC, "No space left on device")))
    monkeypatch.setattr(record, "write", raising(OSError(errno.ENOSPC, "No space left on device")))
    assert convert_slide(task).ending == "no room"


def while_painting(monkeypatch, act):
    """Calls `act` once, after the second tile."""
    calls = []

    def generate(self, tiles):
        calls.append(1)
        if len(calls) == 2:
            act()
        return tiles

    monkeypatch.setattr(IdentityGenerator, "__call__", generate)


def test_a_slide_that_vanishes_half_way_fails_and_what_was_painted_is_used_again(large, monkeypatch):
    slide = large.row.slide
    away = slide.rename(slide.with_suffix(".away"))
    away.rename(slide)
    while_painting(monkeypatch, lambda: slide.rename(away))
    outcome = convert_slide(large)
    assert outcome.ending == "failed"
    assert "was deleted during the conversion" in outcome.reason
    painted = len(list(large.request.folder.glob("*.spool/b_*")))
    assert 0 < painted < 9
    assert not list(large.request.folder.glob("*.ome.tiff"))
    away.rename(slide)
    monkeypatch.undo()
    assert convert_slide(large).ending == "done"
    run = record.read(large.request.folder / "s0.identity.ome.tiff.run.json")
    assert run["blocks"] == {"all": 9, "painted_in_this_run": 9 - painted}


def test_a_slide_that_changes_half_way_fails(large, monkeypatch):
    def grow():
        with large.row.slide.open("ab") as file:
            file.write(b"more")

    while_painting(monkeypatch, grow)
    outcome = convert_slide(large)
    assert (outcome.ending, "was changed during the conversion" in outcome.reason) == ("failed", True)


def test_a_slide_that_is_gone_before_it_begins_is_a_sentence(task):
    task.row.slide.unlink()
    outcome = convert_slide(task)
    assert (outcome.ending, "no such file" in outcome.reason) == ("failed", True)


def test_taking_the_lease_away_stops_at_the_next_block_and_keeps_the_blocks(large, monkeypatch, tmp_path):
    while_painting(monkeypatch, (large.request.folder / "s0.running.json").unlink)
    assert convert_slide(large).ending == "stopped"
    assert state_of(large).state == "interrupted"
    painted = len(list(large.request.folder.glob("*.spool/b_*")))
    assert 0 < painted < 9
    monkeypatch.undo()
    assert convert_slide(large).ending == "done"
    other = task_of(large.row.slide, tmp_path / "other")
    convert_slide(other)
    name = "s0.identity.ome.tiff"
    assert (large.request.folder / name).read_bytes() == (other.request.folder / name).read_bytes()


def test_a_slide_that_somebody_else_converts_is_left_to_them(task):
    with lease_module.Lease(task.request.folder / "s0.running.json", {}):
        assert state_of(task).state == "running"
        assert convert_slide(task).ending == "in use"
    spool = task.request.folder / "s0.identity.ome.tiff.spool"
    spool.mkdir()
    with lock.locked(spool / "lock"):  # by `wsi-stain convert`
        assert convert_slide(task).ending == "in use"
    assert not (task.request.folder / "s0.failed.json").exists()


def test_a_slide_goes_on_in_the_precision_that_it_was_begun_in(large, monkeypatch):
    while_painting(monkeypatch, (large.request.folder / "s0.running.json").unlink)
    convert_slide(large)
    path = large.request.folder / "s0.identity.ome.tiff.spool" / "run.json"
    path.write_text(json.dumps(record.read(path) | {"precision": "bf16"}))  # as on another device
    monkeypatch.undo()
    assert convert_slide(large).ending == "done"
    assert record.read(large.request.folder / "s0.identity.ome.tiff.run.json")["fingerprint"]["precision"] == "bf16"


def leave_of(task: SlideTask, **facts) -> None:
    """What a worker on another host left that is gone: its lease, and the lock of its conversion."""
    owner = {"host": "elsewhere", "pid": 1, "started": 0.0}
    lease = {**owner, "token": "t", "beat": time.time() - 1e4, "worker": "tcp://elsewhere:1", "scheduler": "mine"}
    (task.request.folder / "s0.running.json").write_text(json.dumps(lease | facts))
    spool = task.request.folder / "s0.identity.ome.tiff.spool"
    spool.mkdir(exist_ok=True)
    (spool / "lock").write_text(json.dumps(owner))


@contextmanager
def beating(task: SlideTask, behind: float = 0.0):
    """A living holder on another host, whose clock is behind; each heartbeat replaces its lease while it is there."""
    path, end = task.request.folder / "s0.running.json", threading.Event()
    lease = json.loads(path.read_text())

    def run() -> None:
        for n in itertools.count():
            if end.wait(0.02) or not path.exists():
                return
            atomic_write(path, json.dumps(lease | {"beat": time.time() - behind + n / 1000}), sync=False)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("behind", [-60.0, 60.0, 3600.0])
def test_a_living_worker_keeps_its_slide_whatever_its_clock_says(task, monkeypatch, behind):
    """An hour is far more than `STALE_S`; its worker waits for it, and converts the slide after it ended."""
    monkeypatch.setattr(module, "STALE_S", 1.0)
    leave_of(task, beat=time.time() - behind)
    path, outcomes = task.request.folder / "s0.running.json", []
    second = SlideTask(task.request, task.row, 1, scheduler="mine")
    with beating(task, behind):
        thread = threading.Thread(target=lambda: outcomes.append(convert_slide(second).ending))
        thread.start()
        time.sleep(2.5)
        assert path.exists()
        assert outcomes == []
    thread.join(60)
    assert outcomes == ["done"], "once the heart of the first one stopped"


def test_what_a_lost_worker_of_the_same_cluster_left_is_cleared_once_its_heart_stops(task, monkeypatch):
    monkeypatch.setattr(module, "STALE_S", 0.3)
    leave_of(task, beat=time.time())
    start = time.monotonic()
    assert convert_slide(SlideTask(task.request, task.row, 1, scheduler="mine")).ending == "done"
    assert time.monotonic() - start > 0.25


def test_what_another_cluster_left_on_another_host_is_cleared_only_if_the_user_says_so(task, monkeypatch):
    from dataclasses import replace

    leave_of(task)
    outcome = convert_slide(SlideTask(task.request, task.row, 1, scheduler="another"))
    assert (outcome.ending, "elsewhere" in outcome.reason) == ("in use", True)
    monkeypatch.setattr(module, "STALE_S", 1.0)
    sure = replace(task.request, break_stale_locks=True)
    leave_of(task)
    with beating(task):
        assert convert_slide(SlideTask(sure, task.row, 1)).ending == "in use", "its heart beats"
    leave_of(task, beat=time.time())
    assert convert_slide(SlideTask(sure, task.row, 1)).ending == "done"


def test_slides_in_work_never_take_more_threads_than_there_are():
    threads, taken, most, order = module._Threads(4), [0], [0], []
    guard = threading.Lock()

    def use(expected: int) -> None:
        with threads(expected) as got:
            with guard:
                taken[0] += got
                most[0] = max(most[0], taken[0])
                order.append(expected)
            time.sleep(0.01)
            with guard:
                taken[0] -= got

    users = [threading.Thread(target=use, args=(n,)) for n in (1, 1 << 30, 2, 4, 1, 3, 1, 1, 1 << 30, 2)]
    for user in users:
        user.start()
    for user in users:
        user.join(20)
    assert most[0] == 4
    assert len(order) == len(users)


def test_a_worker_that_follows_another_one_in_a_process_has_its_own_threads():
    """A worker of two threads would wait for ever, if the first one's total of one thread were kept."""

    class Worker:
        def __init__(self, threads: int) -> None:
            self.state = SimpleNamespace(nthreads=threads)

    first, second = Worker(1), Worker(2)
    with module._threads_of(first)(9) as of_first, module._threads_of(second)(9) as of_second:
        assert (of_first, of_second) == (1, 2)
    assert module._threads_of(second) is module._threads_of(second)
    kept = len(module._of_workers)
    del second
    gc.collect()
    assert len(module._of_workers) == kept - 1
