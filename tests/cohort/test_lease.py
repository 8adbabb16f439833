"""Who converts a slide: one at a time, and no longer than it is let."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from wsi_stain.cohort import lease as module
from wsi_stain.cohort.lease import Lease, LeaseLost, Pulse, read_lease
from wsi_stain.errors import InUse
from wsi_stain.files import lock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    monkeypatch.setattr(module, "LOOK_S", 0.0)


def dead_process() -> dict:
    """A process of this host that is gone."""
    code = "import json; from wsi_stain.files import lock; print(json.dumps(lock.this_process()))"
    return json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))


def test_a_lease_beats_while_it_is_held_and_is_gone_afterwards(tmp_path):
    path = tmp_path / "s.running.json"
    with Lease(path, {"worker": "w"}) as lease:
        first = read_lease(path)
        lease.progress = 0.5
        deadline = time.monotonic() + 20
        while read_lease(path)["progress"] != 0.5 and time.monotonic() < deadline:
            time.sleep(0.01)
        later = read_lease(path)
        lease.check()
    assert (later["progress"], later["worker"], later["pid"]) == (0.5, "w", os.getpid())
    assert later["beat"] > first["beat"]
    assert list(tmp_path.iterdir()) == []


def test_a_second_holder_is_refused_and_the_first_goes_on(tmp_path):
    path = tmp_path / "s.running.json"
    with Lease(path, {}) as lease:
        with pytest.raises(InUse, match=f"process {os.getpid()}"), Lease(path, {}):
            pass
        lease.check()
        assert path.exists()


def test_the_lease_of_a_dead_process_is_taken_over_and_one_of_another_host_is_not(tmp_path):
    path = tmp_path / "s.running.json"
    path.write_text(json.dumps(dead_process()))
    with Lease(path, {}) as lease:
        lease.check()
    path.write_text(json.dumps(dead_process() | {"host": "elsewhere"}))
    with pytest.raises(InUse, match="elsewhere"), Lease(path, {}):
        pass
    assert path.exists()


def test_a_lease_that_was_taken_away_stays_away_and_its_holder_stops(tmp_path):
    path = tmp_path / "s.running.json"
    with Lease(path, {}) as lease:
        path.unlink()
        time.sleep(0.1)  # several beats
        assert not path.exists()
        with pytest.raises(LeaseLost):
            lease.check()
    assert not path.exists()


def test_a_holder_does_not_touch_the_lease_of_its_successor(tmp_path):
    path = tmp_path / "s.running.json"
    with Lease(path, {}) as lease:
        path.unlink()
        path.write_text('{"token": "another"}')
        time.sleep(0.1)
        with pytest.raises(LeaseLost):
            lease.check()
    assert path.read_text() == '{"token": "another"}'


@pytest.fixture(params=[-3600, -60, 0, 60, 3600], ids=lambda s: f"clock {s:+} s")
def elsewhere(request, tmp_path):
    """The lease of a living holder on a host whose clock differs."""
    path, end = tmp_path / "s.running.json", threading.Event()
    lease = {**lock.this_process(), "host": "elsewhere", "token": "t"}

    def beat() -> None:
        path.write_text(json.dumps(lease | {"beat": time.time() + request.param}))

    def run() -> None:
        while not end.wait(0.02):
            beat()

    beat()
    thread = threading.Thread(target=run)
    thread.start()
    yield path, end
    end.set()
    thread.join()


@pytest.mark.slow
def test_a_holder_is_judged_by_its_heartbeats_and_not_by_its_clock(elsewhere):
    (path, end), pulse = elsewhere, Pulse()
    until = time.monotonic() + 0.5
    longest = 0.0
    while time.monotonic() < until:
        longest = max(longest, pulse.silence_s(read_lease(path) or {"token": "t", "beat": -1}))
        time.sleep(0.01)
    assert longest < 0.4, "it beats 50 times a second"
    end.set()
    time.sleep(0.2)
    pulse.silence_s(read_lease(path))
    time.sleep(0.2)
    assert pulse.silence_s(read_lease(path)) >= 0.2


def test_watching_tells_a_late_clock_from_a_lost_holder(elsewhere, monkeypatch):
    monkeypatch.setattr(module, "WATCH_S", 5.0)
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    (path, end), pulse = elsewhere, Pulse()
    start = time.monotonic()
    pulse.watch([path])
    assert time.monotonic() - start < 4
    assert pulse.silence_s(read_lease(path)) < 1
    end.set()
    time.sleep(0.2)
    monkeypatch.setattr(module, "WATCH_S", 0.3)
    pulse.watch([path])
    assert pulse.silence_s(read_lease(path)) >= module.STALE_S


def test_removing_a_stale_lock_spares_one_that_took_its_place(tmp_path):
    path = tmp_path / "lock"
    path.write_text("new")
    lock.remove(path, "stale")
    assert path.read_text() == "new"
    lock.remove(path, "new")
    assert list(tmp_path.iterdir()) == []
