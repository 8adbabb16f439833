"""`<output>.run.json`: the record of a run, next to its output.

Holds versions, arguments, hashes, counts, timings and peak memory; nothing about the patient, and only paths that the
user typed.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from wsi_stain.files.atomic import atomic_write

log = logging.getLogger(__name__)

PACKAGES = (
    *("openslide-python", "openslide-bin", "tifffile", "imagecodecs", "pillow"),  # reading, colour profile
    *("wsidicom", "pydicom", "pylibCZIrw"),  # optional readers
    *("numpy", "scipy", "scikit-image", "opencv-python-headless"),  # resampling, tissue, halving
    *("torch", "safetensors", "pytorch-wavelets", "PyWavelets", "onnxruntime"),  # the network
    *("zarr", "numcodecs"),  # writing
)
"""Packages whose version can change a pixel or a byte of an output."""
NOT_PIXELS = frozenset({"python", "platform", "distributed"})
"""Entries of `versions()` that cannot change pixels: for reports of problems."""


def path_of(output: Path) -> Path:
    """The path of an output's record."""
    return output.with_name(output.name + ".run.json")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record atomically."""
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A record; empty if it is missing or unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def versions() -> dict[str, str]:
    """Versions of everything that can affect the output; packages that are not installed are left out."""
    system = {"python": platform.python_version(), "platform": platform.platform()}
    packages = {name: _version(name) for name in ("wsi-stain", *PACKAGES, "distributed")}
    return system | {name: version for name, version in packages.items() if version is not None}


def note_versions(path: Path) -> list[dict[str, str]]:
    """The versions of all runs that worked on one output so far, the current run last.

    Args:
        path: file in which the runs note their versions.

    If a package was changed since the last run, this is logged: pixels of both versions are mixed.
    """
    history: list[dict[str, str]] = read(path).get("runs", [])
    current = versions()
    if history and (changed := changes(history[-1], current)):
        log.warning(
            "%s was begun with other versions (%s); its finished parts are kept, and the record lists both; --restart "
            "begins again with the current versions",
            path.parent,
            ", ".join(changed),
        )
    if not history or changes(history[-1], current):
        history = [*history, current]
        write(path, {"runs": history})
    return history


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What can change pixels and differs between two results of `versions()`, for example `numpy 2.3.1 → 2.4.6`."""
    names = [name for name in {**before, **after} if name not in NOT_PIXELS and before.get(name) != after.get(name)]
    return [f"{name} {before.get(name, 'not installed')} → {after.get(name, 'not installed')}" for name in names]


def peak_memory_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its peak survives exec, so a child would report its parent's peak.
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if os.name == "posix":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    import psutil

    return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
