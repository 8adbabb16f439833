"""Time and peak memory of `convert --model identity` over slide sizes, beside what the same process needs to start.

    python benchmarks/scaling.py --folder /tmp/bench --gigapixels 0.1 1

Slides are phantoms, written once into the folder and kept. Prints one line per size, as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from wsi_stain import phantom
from wsi_stain.geometry import Size

START_UP = """
import distributed, cv2, imagecodecs, openslide, tifffile, tiffslide, zarr
from wsi_stain import engine, record
from wsi_stain.workers import DaskWorkers
with DaskWorkers(2) as workers:
    list(workers.map(abs, range(10)))
print(record.peak_memory_bytes())
"""
"""Imports and cluster of a conversion, without a slide."""


def slide_of(folder: Path, gigapixels: float) -> Path:
    """A phantom of about so many pixels, 5 : 4."""
    path = folder / f"phantom-{gigapixels:g}.svs"
    if not path.exists():
        side = (gigapixels * 1e9 / 20) ** 0.5
        phantom.write_slide(path, size=Size(round(4 * side), round(5 * side)))
    return path


def measure(slide: Path, folder: Path, workers: int) -> dict:
    """One conversion in a process of its own: seconds, and its record."""
    output = folder / "out.ome.tiff"
    command = [sys.executable, "-m", "wsi_stain", "convert", str(slide), "--model", "identity", "--mask", "none"]
    command += ["-o", str(output), "--workers", str(workers), "--restart", "--json"]
    start = time.perf_counter()
    record = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
    return record | {"seconds": time.perf_counter() - start}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigapixels", type=float, nargs="+", default=[0.1, 1])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    base = int(subprocess.check_output([sys.executable, "-c", START_UP]))
    print(f"start-up: {base / 2**20:.0f} MiB\n")
    print("| gigapixels | workers | s | Mpx/s | peak over start-up, MiB |\n|---|---|---|---|---|")
    for gigapixels in options.gigapixels:
        slide = slide_of(options.folder, gigapixels)
        for workers in options.workers:
            found = measure(slide, options.folder, workers)
            pixels = found["size_px"][0] * found["size_px"][1]
            over = (found["peak_memory_bytes"] - base) / 2**20
            speed = pixels / found["seconds"] / 1e6
            print(f"| {pixels / 1e9:.2f} | {workers} | {found['seconds']:.1f} | {speed:.0f} | {over:.0f} |", flush=True)


if __name__ == "__main__":
    main()
