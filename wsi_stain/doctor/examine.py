"""Runs every check, in a few seconds; a check that raises is a failed one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from wsi_stain.doctor.bundles import check_bundles
from wsi_stain.doctor.devices import check_devices
from wsi_stain.doctor.finding import Finding
from wsi_stain.doctor.machine import (
    check_memory,
    check_open_files,
    check_others,
    check_slurm,
    check_tasks,
    check_threads,
)
from wsi_stain.doctor.readers import check_readers
from wsi_stain.doctor.storage import check_folder
from wsi_stain.files import record

BUG = "install wsi-stain again (pip install --force-reinstall wsi-stain), and report it if that does not help"


def examine(folder: Path) -> Iterator[Finding]:
    """All findings.

    Args:
        folder: where outputs will be written; a few files are written there and removed.
    """
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", _versions),
        ("readers", check_readers),
        ("devices", check_devices),
        ("models", check_bundles),
        ("output folder", lambda: check_folder("output folder", folder)),
        ("temporary folder", lambda: check_folder("temporary folder", Path(tempfile.gettempdir()))),
        ("threads", check_threads),
        ("memory", check_memory),
        ("open files", check_open_files),
        ("tasks", check_tasks),
        ("SLURM", check_slurm),
        ("QuPath", check_others),
    ]
    for subject, check in checks:
        try:
            yield from check()
        except Exception as err:  # the report must be complete whatever is broken
            yield Finding(subject, "FAIL", f"{type(err).__name__}: {err}", BUG)


def _versions() -> Iterator[Finding]:
    import openslide

    for name, version in {**record.versions(), "OpenSlide": openslide.__library_version__}.items():
        yield Finding(name, "PASS", version)
