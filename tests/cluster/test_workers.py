import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import count

import pytest
from distributed import LocalCluster

from wsi_stain.cluster.threads import MOST_THREADS
from wsi_stain.cluster.workers import DaskWorkers, SerialWorkers, ThreadWorkers, ask, choose
from wsi_stain.errors import ConfigError, OutputError

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
        DaskWorkers(cluster.scheduler_address) as workers,
    ):
        yield workers


KINDS = {
    "serial": SerialWorkers,
    "one thread": lambda: ThreadWorkers(1),
    "three threads": lambda: ThreadWorkers(3),
    "one thread of Dask": lambda: dask(1),
    "three threads of Dask": lambda: dask(3),
}


@pytest.fixture(params=KINDS)
def workers(request):
    with KINDS[request.param]() as made:
        yield made


def test_every_item_is_done_once(workers):
    assert sorted(workers.map(double, range(50))) == [2 * n for n in range(50)]
    assert list(workers.map(double, [])) == []
    assert sorted(workers.map(double, [1, 1, 1])) == [2, 2, 2]  # equal items are not one task


def test_the_first_error_is_raised_as_it_is_and_ends_the_rest(workers):
    started.clear()
    with pytest.raises(OutputError, match=r"^the disk is full$"):
        for _ in workers.map(fail_at_20, range(10_000)):
            pass
    assert 20 < len(started) < 60
    assert sorted(workers.map(double, range(3))) == [0, 2, 4]  # still in order afterwards


def test_few_items_are_handed_out_before_they_are_needed(workers):
    taken = count()
    items = (next(taken) for _ in range(10_000))
    results = workers.map(double, items)
    for _ in range(5):
        next(results)
    assert next(taken) < 5 + 3 * 3 + 5
    results.close() if hasattr(results, "close") else None


@pytest.mark.parametrize("kind", [ThreadWorkers, dask])
def test_threads_work_at_once(kind):
    with kind(3) as workers:
        assert sorted(workers.map(meet, range(9))) == list(range(9))


@pytest.mark.parametrize("kind", [ThreadWorkers, dask])
def test_results_come_as_they_finish(kind):
    finished.clear()
    with kind(2) as workers:
        results = workers.map(wait_if_first, range(4))
        first = [next(results) for _ in range(3)]
        finished.set()
        assert sorted(first) == [1, 2, 3]
        assert list(results) == [0]


def test_a_running_scheduler_can_be_used_and_is_left_running():
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", protocol="tcp"
    ) as cluster:
        for _ in range(2):
            with choose(None, cluster.scheduler_address) as workers:
                assert sorted(workers.map(double, range(20))) == [2 * n for n in range(20)]


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
        choose(None, "tcp://127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - start < 20


def test_the_choice_of_workers():
    assert isinstance(choose(0, None), SerialWorkers)
    assert isinstance(choose(3, None), ThreadWorkers)
    assert isinstance(choose(None, None), ThreadWorkers)
    assert MOST_THREADS == 8
    with pytest.raises(ConfigError, match="--workers is -2: it must be 0"):
        choose(-2, None)


def test_importing_the_module_does_not_import_dask():
    code = "import sys, wsi_stain.cluster.workers; sys.exit('dask' in sys.modules or 'distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
