"""`<output>.run.json`: the record of a run, next to its output.

Holds versions, arguments, hashes, counts, timings and peak memory; nothing about the patient, and only paths that the
user typed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy",
    "tifffile",
    "imagecodecs",
    "opencv-python-headless",
    "openslide-python",
    "zarr",
    "distributed",
)
"""Packages whose version can change pixels, bytes or speed."""


def path_of(output: Path) -> Path:
    """The path of an output's record."""
    return output.with_name(output.name + ".run.json")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record atomically."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        # A path that is not UTF-8 holds surrogates; written as JSON \uXXXX they are read back unchanged.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """A record; empty if it is missing or unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def versions() -> dict[str, str]:
    """Versions of all packages that can affect the output; torch only if it was imported."""
    result = {"wsi-stain": _version("wsi-stain"), "python": platform.python_version(), "platform": platform.platform()}
    result |= {name: _version(name) for name in PACKAGES}
    if "torch" in sys.modules:
        result["torch"] = str(sys.modules["torch"].__version__)
    return result


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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
