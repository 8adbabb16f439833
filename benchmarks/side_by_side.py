"""What the benchmarks share: processes measured in alternation, ratios of pairs, tables, pictures, the machine.

Not a benchmark itself. Candidates take turns, so that what else the machine does meets all of them; a ratio is taken
between neighbours in time and given as its least and its median. A process tells its own peak memory on its last line:
the kernel's number for a child (`ru_maxrss`) would begin with its parent's.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_stain import phantom
from wsi_stain.files import record
from wsi_stain.geometry import Size

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Run:
    """One process, from start to end."""

    seconds: float
    cpu_s: float
    """User and system time."""
    report: dict[str, Any] = field(default_factory=dict)
    """The JSON on its last line."""


def run(*command: str | Path, **environment: str) -> Run:
    """Run a Python command (`-m module …` or `script.py …`) to its end."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {done.stderr.strip()}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu_s, json.loads(done.stdout[done.stdout.index("{") :]))


def convert(slide: Path, output: Path, *options: str | int, **environment: str) -> Run:
    """`wsi-stain convert … --restart`; its report is the run record."""
    command = ["-m", "wsi_stain", "convert", str(slide), "-o", str(output), "--restart", "--json"]
    return run(*command, *map(str, options), **environment)


def alternate(candidates: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """The runs of each candidate, in alternation; an uncounted first round fills the caches."""
    runs: dict[str, list[Run]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, once in candidates.items():
            done = once()
            if number:
                runs[name].append(done)
                print(f"round {number} of {rounds}, {name}: {done.seconds:.1f} s", file=sys.stderr, flush=True)
    return runs


def ratios(above: Sequence[float], below: Sequence[float]) -> str:
    """Minimum and median of the ratios of runs adjacent in time, as `1.02 / 1.04`."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return f"{min(values):.2f} / {statistics.median(values):.2f}"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Minimum and median."""
    return f"{min(values):.{digits}f} / {statistics.median(values):.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> str:
    """The measuring machine, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {cores} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}{load}"


def phantom_slide(folder: Path, gigapixels: float) -> Path:
    """A JPEG phantom of about this size, 5 : 4; written once and kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"phantom-{gigapixels:g}.svs"
    if not path.exists():
        side = (gigapixels * 1e9 / 20) ** 0.5
        phantom.write_slide(path, size=Size(round(4 * side), round(5 * side)))
    return path


def report(**content: Any) -> None:
    """Print the report of a measured process: `content` and its peak memory, as JSON."""
    print(json.dumps(content | {"peak_memory_bytes": record.peak_memory_bytes()}))


def mib(run: Run) -> float:
    """Peak memory of a process in MiB."""
    return run.report["peak_memory_bytes"] / 2**20


def bars(path: Path, title: str, values: Mapping[str, Sequence[float]], unit: str) -> None:
    """Write a picture: one bar per candidate up to its median, one dot per run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.45 * len(values)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (name, runs) in enumerate(values.items()):
        axes.barh(
            row, statistics.median(runs), color="#1f6fb4" if name.startswith("wsi-stain") else "#b9c4cf", height=0.6
        )
        axes.scatter(runs, [row] * len(runs), s=10, color="#333333", zorder=3)
    axes.set(yticks=range(len(values)), yticklabels=list(values), xlabel=unit, xlim=(0, None))
    axes.set_title(title, loc="left", fontsize=10)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})
