import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial
from itertools import count

import pytest
from dask import config as dask_config
from distributed import LocalCluster, get_worker

from wsi_stain.cluster import workers as module
from wsi_stain.cluster.workers import Workers, ask
from wsi_stain.errors import ConfigError, OutputError, WorkersLost

# Functions for Dask are the module's own: it pickles others, and they would work on copies of what they share.
started = []
together = threading.Barrier(3, timeout=20)
finished = threading.Event()


def double(n):
    return 2 * n


def fail_at_20(n):
    started.append(n)
    if n == 20:
        raise OutputError("the disk is full")
    return n


def note(n):
    started.append(n)
    return n


def die_at_3(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def where(n):
    time.sleep(0.02)
    return get_worker().address


def touch(folder, n):
    time.sleep(0.02)
    (folder / str(n)).touch()
    return n


class Report:
    """Stands for what a block returns."""

    def __init__(self, n):
        self.n = n


def meet(n):
    together.wait()
    return n


def wait_if_first(n):
    if n == 0:
        finished.wait(20)
    return n


@contextmanager
def dask(threads):
    """Workers of a scheduler in this process."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=":0") as cluster,
        Workers(scheduler=cluster.scheduler_address) as workers,
    ):
        yield workers


KINDS = {
    "the calling thread": lambda: Workers(0),
    "one thread": lambda: Workers(1),
    "three threads": lambda: Workers(3),
    "one thread of a scheduler": lambda: dask(1),
    "three threads of a scheduler": lambda: dask(3),
}


@pytest.fixture(params=KINDS)
def workers(request):
    with KINDS[request.param]() as result:
        yield result


def results(workers, func, items):
    actual = []
    workers.run(func, items, actual.append)
    return actual


def test_every_item_is_done_once(workers):
    assert sorted(results(workers, double, range(50))) == [2 * n for n in range(50)]
    assert results(workers, double, []) == []
    assert sorted(results(workers, double, [1, 1, 1])) == [2, 2, 2]  # equal items are not one task
    assert sorted(results(workers, repr, ["a", (1, 2), [3]])) == ["'a'", "(1, 2)", "[3]"]  # and no item is a graph


def test_the_first_error_is_raised_as_it_is_and_ends_the_rest(workers):
    started.clear()
    with pytest.raises(OutputError, match=r"^the disk is full$"):
        workers.run(fail_at_20, range(10_000), lambda _: None)
    assert 20 < len(started) < 60
    assert sorted(results(workers, double, range(3))) == [0, 2, 4]  # still in order afterwards


def test_an_error_of_the_one_who_gets_the_results_ends_the_rest(workers):
    started.clear()

    def refuse(n):
        if n >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.run(note, range(10_000), refuse)
    assert 5 < len(started) < 60
    assert sorted(results(workers, double, range(3))) == [0, 2, 4]


@pytest.mark.slow
def test_tasks_start_in_the_order_of_the_items(workers):
    started.clear()
    items = [n * 7919 % 1000 for n in range(1000)]  # more than one graph; in no order of names or numbers
    workers.run(note, items, lambda _: None)
    places = [items.index(n) for n in started]
    assert sorted(places) == list(range(1000))
    assert max(abs(place - n) for n, place in enumerate(places)) <= 12


@pytest.mark.slow
def test_few_items_are_taken_and_few_results_are_kept(workers, monkeypatch):
    monkeypatch.setattr(module, "PER_THREAD", 4)
    taken, alive, most = count(), weakref.WeakSet(), []
    items = (next(taken) for _ in range(500))

    def look(report):
        alive.add(report)
        most.append(len(alive))
        ahead.append(taken.__reduce__()[1][0] - len(most))

    ahead = []
    workers.run(Report, items, look)
    assert len(most) == 500
    assert max(ahead) <= 3 * 4
    gc.collect()
    assert max(most) <= 3 * 4 + 8


@pytest.mark.parametrize("kind", [Workers, dask])
def test_threads_work_at_once(kind):
    with kind(3) as workers:
        assert sorted(results(workers, meet, range(9))) == list(range(9))


@pytest.mark.parametrize("kind", [Workers, dask])
def test_results_come_as_they_finish(kind):
    finished.clear()
    actual = []

    def take(n):
        actual.append(n)
        if len(actual) == 3:
            finished.set()

    with kind(2) as workers:
        workers.run(wait_if_first, range(4), take)
    assert sorted(actual[:3]) == [1, 2, 3]
    assert actual[3] == 0


def test_a_user_s_configuration_of_dask_changes_nothing():
    with dask_config.set(chunksize=-1, scheduler="processes", rerun_exceptions_locally=True), Workers(2) as workers:
        started.clear()
        with pytest.raises(OutputError, match="the disk is full"):
            workers.run(fail_at_20, range(10_000), lambda _: None)
        assert started.count(20) == 1
        assert len(started) < 60


def test_the_overhead_of_a_task_is_small():
    with Workers(2) as workers:
        workers.run(double, range(2), lambda _: None)
        start = time.process_time()
        workers.run(double, range(2000), lambda _: None)
        assert (time.process_time() - start) / 2000 < 0.003  # 0.2 ms on an idle machine; a block takes 300 ms


def test_workers_that_join_late_get_tasks(monkeypatch):
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp"
    ) as cluster:
        seen = []

        def take(address):
            seen.append(address)
            if len(seen) == 1:
                cluster.scale(2)
                cluster.wait_for_workers(2)

        with Workers(scheduler=cluster.scheduler_address) as workers:
            workers.run(where, range(60), take)
    assert len(seen) == 60
    assert len(set(seen)) == 2


def test_a_worker_that_dies_loses_no_task(tmp_path):
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        killed = []

        def take(number):
            if not killed:
                killed.append(next(iter(cluster.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)

        with Workers(scheduler=cluster.scheduler_address) as workers:
            workers.run(partial(touch, tmp_path), range(40), take)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(40))


def test_a_running_scheduler_can_be_used_and_is_left_running():
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", protocol="tcp"
    ) as cluster:
        for _ in range(2):
            with Workers(None, cluster.scheduler_address) as workers:
                assert sorted(results(workers, double, range(20))) == [2 * n for n in range(20)]


def test_every_worker_of_a_scheduler_is_asked_or_there_is_a_sentence(monkeypatch):
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp"
    ) as cluster:
        assert ask(cluster.scheduler_address, os.getpid) == [os.getpid()] * 2
        cluster.scale(0)
        monkeypatch.setattr("wsi_stain.cluster.workers.PATIENCE", "1s")
        deadline = time.monotonic() + 20
        while cluster.scheduler.workers and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(ConfigError, match="has no worker after 1s"):
            ask(cluster.scheduler_address, os.getpid)


def test_a_scheduler_that_is_not_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr("wsi_stain.cluster.workers.PATIENCE", "1s")
    start = time.monotonic()
    with (
        pytest.raises(ConfigError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
        Workers(None, "tcp://127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - start < 20


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(ConfigError, match="--workers is -2: it must be 0"):
        Workers(-2)


def test_importing_the_module_does_not_import_dask():
    code = "import sys, wsi_stain.cluster.workers; sys.exit('dask' in sys.modules or 'distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_workers_that_die_are_a_sentence_of_ours():
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with (
        dask_config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(**options) as cluster,
        Workers(None, cluster.scheduler_address) as workers,
        pytest.raises(WorkersLost, match="1 workers died"),
    ):
        workers.run(die_at_3, range(9), started.append)
