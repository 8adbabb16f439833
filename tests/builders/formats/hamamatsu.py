"""Hamamatsu: NDPI (a TIFF of whole JPEGs with restart markers) and VMS (an ini file that names JPEGs)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from builders.formats.picture import Built, jpeg, picture, reduced

LONG, SLONG, FLOAT = 4, 9, 11


def ndpi(path: Path) -> Built:
    """Levels 1, 4 and 16 in three focal planes; those out of focus show the negative."""
    mpp, truth = 0.23, picture(1024, 2048)
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 4, 16):
            for plane in (0, 1500, -1500):
                pixels = truth if factor == 1 else reduced(truth, factor)
                data = jpeg(pixels if plane == 0 else 255 - pixels, restart_marker_blocks=32 if factor < 16 else 0)
                _page(tiff, data, pixels.shape, mpp * factor, 40 / factor, plane)
        macro = np.full((64, 192, 3), 190, np.uint8)
        _page(tiff, jpeg(macro), macro.shape, 50, -1, 0)
    return Built(path, truth, mpp, 40, format="Hamamatsu NDPI", planes=3)


def _page(tiff: tifffile.TiffWriter, data: bytes, shape: tuple[int, ...], mpp: float, lens: float, plane: int) -> None:
    tags = [
        (65420, LONG, 1, 1, True),  # what makes it NDPI
        (65421, FLOAT, 1, lens, True),
        (65422, SLONG, 1, 500_000, True),
        (65423, SLONG, 1, -900_000, True),
        (65424, SLONG, 1, plane, True),
        (65427, 2, 0, "built", True),
    ]
    tiff.write(
        iter([data]),
        shape=shape,
        dtype="uint8",
        photometric="ycbcr",
        subsampling=(1, 1),
        compression="jpeg",
        rowsperstrip=shape[0],
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
        extratags=tags,
    )


def vms(folder: Path) -> Built:
    """Level 0 in two JPEGs side by side, and a map of it at an eighth."""
    folder.mkdir(parents=True)
    mpp, truth = 0.46, picture(512, 1536)
    ini = ["[Virtual Microscope Specimen]", "NoLayers=1", "NoJpegColumns=2", "NoJpegRows=1", "SourceLens=20"]
    ini += [f"PhysicalWidth={round(1536 * mpp * 1000)}", f"PhysicalHeight={round(512 * mpp * 1000)}"]
    ini += ["ImageFile=a.jpg", "ImageFile(1,0)=b.jpg", "MapFile=map.jpg", "MacroImage=macro.jpg"]
    for name, pixels in (("a.jpg", truth[:, :768]), ("b.jpg", truth[:, 768:])):
        (folder / name).write_bytes(jpeg(pixels, restart_marker_blocks=32))
    (folder / "map.jpg").write_bytes(jpeg(reduced(truth, 8), restart_marker_blocks=4))
    (folder / "macro.jpg").write_bytes(jpeg(np.full((48, 128, 3), 180, np.uint8)))
    path = folder / "slide.vms"
    path.write_text("\n".join(ini) + "\n")
    return Built(path, truth, mpp, 20, format="Hamamatsu VMS")
