"""One rule for the number of threads."""

import os
import subprocess
import sys

import pytest

from wsi_stain.cluster import threads
from wsi_stain.cluster.threads import MOST_THREADS, processors, thread_count


@pytest.mark.parametrize(("requested", "count"), [(0, 1), (1, 1), (3, 3), (64, 64)])
def test_a_number_that_the_user_gives_is_used(requested: int, count: int) -> None:
    assert thread_count(requested) == count


@pytest.mark.parametrize(("available", "count"), [(1, 1), (2, 2), (8, 8), (128, MOST_THREADS)])
def test_by_default_there_is_a_thread_per_processor_up_to_a_limit(monkeypatch, available: int, count: int) -> None:
    monkeypatch.setattr(threads, "processors", lambda: available)
    assert thread_count() == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_of_the_process_counts_and_not_the_machine() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from wsi_stain.cluster.threads import processors; "
        "print(processors())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "1"
    assert 1 <= processors() <= (os.cpu_count() or 1)
