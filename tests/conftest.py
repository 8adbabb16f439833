"""Fixtures shared by all tests."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# On a busy machine, OpenMP threads that spin wait for each other: with two of them, training tests took ten times as
# long. Subprocesses inherit it; a test that needs more threads sets their number itself. Sleeping threads
# (OMP_WAIT_POLICY=PASSIVE) are no way out: they take three times as long even on an idle machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Dask's profiler stops a process for ever now and then (python/cpython#106883, mended in 3.11.9 and 3.12.3).
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, a file's tests share a process, and so do all that share the SLURM.

    Not `--dist loadgroup`: pytest-xdist 3.8 appends groups to an attribute that pytest 9.2 no longer reads, so that
    every test was a group of its own, and both processes made the fixtures of one file.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "slurm" if path.endswith("/test_slurm.py") else path

    return ByFile(config, log)


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
