"""`identity` on a JPEG slide, compared with `vips tiffsave` writing the same pyramid and with reading alone.

    python benchmarks/io.py --folder /tmp/bench

Needs `pip install -e '.[benchmark]'`. Both write 512 px tiles, JPEG of the same quality, levels of one half down to one
tile, as SubIFDs of a BigTIFF. From quality 90 on libvips stores colours at full resolution; with 89 it halves them as
wsi-stain does, so both are shown: the one is the same command, the other the same work.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from side_by_side import Run, alternate, bars, convert, machine, mib, phantom_slide, ratios, report, run, spread, table

QUALITY = 90
NAMES = ("wsi-stain identity", "vips tiffsave Q 90 (4:4:4)", "vips tiffsave Q 89 (4:2:0)", "reading alone")


def read_alone(slide: Path, workers: int) -> None:
    """Every pixel of level 0, in the engine's blocks and threads."""
    from wsi_stain.cluster.workers import Workers
    from wsi_stain.config.convert import GridConfig
    from wsi_stain.slide.slide import Slide
    from wsi_stain.tiling.grid import TileGrid

    with Slide.open(slide) as opened, Workers(workers) as threads:
        view = opened.at(None)
        blocks = TileGrid(view.size, 512, 0, block=GridConfig().block).blocks()
        pixels: list[int] = []
        threads.run(lambda block: view.read(block.write).size // 3, blocks, pixels.append)
    report(pixels=sum(pixels))


def vips(slide: Path, output: Path, quality: int) -> None:
    """Libvips' own TIFF reader and writer."""
    import pyvips

    image = pyvips.Image.tiffload(str(slide), access="sequential")
    options = {"tile": True, "tile_width": 512, "tile_height": 512, "compression": "jpeg", "Q": quality}
    image.tiffsave(str(output), pyramid=True, subifd=True, bigtiff=True, **options)
    report(pixels=image.width * image.height, version=f"{pyvips.version(0)}.{pyvips.version(1)}.{pyvips.version(2)}")


def measure(slide: Path, folder: Path, workers: int, rounds: int) -> dict[str, list[Run]]:
    """All candidates, who take turns."""
    options = ["--model", "identity", "--mask", "none", "--quality", QUALITY, "--workers", workers]

    def by_vips(quality: int) -> Run:
        return run(__file__, "vips", slide, folder / "vips.tif", quality, VIPS_CONCURRENCY=str(workers))

    once = (
        lambda: convert(slide, folder / "io.ome.tiff", *options),
        lambda: by_vips(QUALITY),
        lambda: by_vips(QUALITY - 1),
        lambda: run(__file__, "read", slide, workers),
    )
    return alternate(dict(zip(NAMES, once, strict=True)), rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the slide, which is kept, and the outputs")
    parser.add_argument("--gigapixels", type=float, default=0.6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    here = machine()
    runs = measure(phantom_slide(options.folder, options.gigapixels), options.folder, options.workers, options.rounds)
    pixels = runs[NAMES[-1]][0].report["pixels"] / 1e6
    ours = [done.seconds for done in runs[NAMES[0]]]
    rows = []
    for name, repeats in runs.items():
        seconds = [done.seconds for done in repeats]
        speed = f"{pixels / min(seconds):.0f}"
        cpu, memory = spread([done.cpu_s for done in repeats]), f"{max(map(mib, repeats)):.0f}"
        rows.append([name, spread(seconds), speed, cpu, memory, ratios(seconds, ours)])
    head = ["", "s (least / median)", "Mpx/s", "CPU s", "peak MiB", "its time / ours"]
    print(f"{here}; {pixels:.0f} Mpx, {options.workers} workers, libvips {runs[NAMES[1]][0].report['version']}\n")
    print(table(head, rows))
    if options.picture:
        speeds = {name: [pixels / done.seconds for done in repeats] for name, repeats in runs.items()}
        bars(options.picture, f"{pixels:.0f} Mpx JPEG slide → pyramidal TIFF", speeds, "Mpx/s")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["vips", slide, output, quality]:
            vips(Path(slide), Path(output), int(quality))
        case ["read", slide, workers]:
            read_alone(Path(slide), int(workers))
        case _:
            main()
