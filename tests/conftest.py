"""Fixtures shared by all tests."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# On a busy machine, OpenMP threads that spin wait for each other: with two of them, training tests took ten times as
# long. Subprocesses inherit it; a test that needs more threads sets their number itself. Sleeping threads
# (OMP_WAIT_POLICY=PASSIVE) are no way out: they take three times as long even on an idle machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Dask's profiler stops a process for ever now and then (python/cpython#106883, mended in 3.11.9 and 3.12.3).
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup`, a file's tests share a process, and so do all that share the SLURM."""
    for item in items:
        group = "slurm" if item.get_closest_marker("slurm") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real slides and pairs, named by WSI_STAIN_DATA; without it the test is skipped."""
    folder = os.environ.get("WSI_STAIN_DATA")
    if not folder:
        pytest.skip("WSI_STAIN_DATA is not set: no real slides on this machine")
    return Path(folder)


@pytest.fixture(autouse=True)
def _log_handlers() -> Iterator[None]:
    """Drop the handlers that a test's command has added: they would write to the closed streams of that test."""
    logger = logging.getLogger("wsi_stain")
    handlers = list(logger.handlers)
    yield
    logger.handlers[:] = handlers
