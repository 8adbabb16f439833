"""Who is busy, and how that becomes shares."""

import time

import pytest

from wsi_stain.conversion.timing import Clock, Usage, Where


def test_a_clock_adds_up_by_stage_and_counts_what_fails() -> None:
    clock = Clock()
    for _ in range(2):
        with clock("read"):
            time.sleep(0.02)
    with pytest.raises(ZeroDivisionError), clock("write"):
        time.sleep(1 / 50) or 1 // 0
    assert clock.seconds["read"] >= 0.04
    assert clock.seconds["write"] >= 0.02


def test_shares_are_of_the_time_that_all_threads_had() -> None:
    usage = Usage()
    for thread in (1, 2):
        for _ in range(3):
            usage.add({"read": 1.0, "generate": 1.5}, Where("a", 1, thread))
    assert usage.shares(10.0) == {"read": 6 / 20, "generate": 9 / 20}
    assert usage.device_busy(10.0) == pytest.approx(0.9)  # two threads, one device


def test_every_process_has_a_device() -> None:
    usage = Usage()
    for where in (Where("a", 1, 1), Where("a", 2, 1), Where("b", 1, 1), Where("b", 1, 2)):
        usage.add({"generate": 2.0}, where)
    assert usage.device_busy(4.0) == pytest.approx(8 / (3 * 4))


def test_nothing_is_claimed_of_nothing() -> None:
    assert (Usage().shares(1.0), Usage().device_busy(1.0), Usage().shares(0.0)) == ({}, 0.0, {})
