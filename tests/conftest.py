"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

# Dask's profiler stops a process for ever now and then (python/cpython#106883, mended in 3.11.9 and 3.12.3).
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real slides and pairs, named by WSI_STAIN_DATA; without it the test is skipped."""
    folder = os.environ.get("WSI_STAIN_DATA")
    if not folder:
        pytest.skip("WSI_STAIN_DATA is not set: no real slides on this machine")
    return Path(folder)
