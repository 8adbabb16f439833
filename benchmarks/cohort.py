"""What a cohort adds to the conversions themselves: seconds per slide, and memory of the main process.

    python benchmarks/cohort.py --folder /tmp/bench --slides 200

Converts tiny slides one by one in one process, and as a cohort with one worker of one thread. Both are done for a tenth
of the slides too: the difference is free of what starting takes. Wall-clock and processor seconds (of all processes).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tifffile

ALONE = """
import sys
from pathlib import Path
from wsi_stain.conversion.engine import ConvertRequest, convert
folder = Path(sys.argv[2])
folder.mkdir()
for slide in sorted(Path(sys.argv[1]).iterdir())[:int(sys.argv[3])]:
    convert(ConvertRequest(slide, folder / f"{slide.stem}.ome.tiff", "identity", workers=0))
print("{}")
"""

COHORT = """
import json, sys
from pathlib import Path
import psutil
from wsi_stain.cohort.request import CohortRequest
from wsi_stain.cohort.run import run

def main():
    memory, (slides, folder, count, cluster) = [], sys.argv[1:]
    tell = lambda event: memory.append(psutil.Process().memory_info().rss) if event.kind == "done" else None
    rows = tuple(range(1, int(count) + 1))
    assert run(CohortRequest(slides, Path(folder), "identity", cluster=Path(cluster), rows=rows), tell).is_complete
    print(json.dumps(memory))

if __name__ == "__main__":
    main()
"""


def write_slides(folder: Path, count: int) -> None:
    """Slides of 600 × 600 px, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(len(list(folder.iterdir())), count):
        pixels = np.random.default_rng(n).integers(100, 200, (600, 600, 3), dtype=np.uint8)
        scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
        tifffile.imwrite(folder / f"s{n:05}.tif", pixels, tile=(256, 256), compression="adobe_deflate", **scale)


def measure(script: Path, *arguments: object) -> tuple[float, float, str]:
    """Wall-clock and processor seconds of a script, and what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    printed = subprocess.check_output([sys.executable, str(script), *map(str, arguments)], text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, printed


def per_slide(folder: Path, name: str, counts: tuple[int, int], *more: object) -> tuple[float, float, str]:
    """Seconds that one more slide takes, wall-clock and processor, and what the longer run printed."""
    rows = []
    for count in counts:
        out = folder / f"{name}-{count}"
        shutil.rmtree(out, ignore_errors=True)
        rows.append(measure(folder / f"{name}.py", folder / "slides", out, count, *more))
    n = counts[1] - counts[0]
    return (rows[1][0] - rows[0][0]) / n, (rows[1][1] - rows[0][1]) / n, rows[1][2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--slides", type=int, default=200)
    options = parser.parse_args()
    folder, counts = options.folder, (max(1, options.slides // 10), options.slides)
    write_slides(folder / "slides", options.slides)
    (folder / "cluster.yaml").write_text("workers: [1, 1]\ncores: 1\n")
    for name, text in (("alone", ALONE), ("cohort", COHORT)):
        (folder / f"{name}.py").write_text(text)
    alone = per_slide(folder, "alone", counts)
    cohort = per_slide(folder, "cohort", counts, folder / "cluster.yaml")
    memory = [n / 2**20 for n in json.loads(cohort[2])]
    print("| | s per slide | processor s per slide |\n|---|---|---|")
    print(f"| conversions alone | {alone[0]:.3f} | {alone[1]:.3f} |")
    print(f"| as a cohort | {cohort[0]:.3f} | {cohort[1]:.3f} |")
    print(f"| overhead | {cohort[0] - alone[0]:.3f} | {cohort[1] - alone[1]:.3f} |")
    tenth = len(memory) // 10
    print(f"\nmain process: {memory[tenth]:.0f} MiB after {tenth} slides, {memory[-1]:.0f} after {len(memory)}")


if __name__ == "__main__":
    main()
