"""The slides that `wsi-stain doctor` opens: `python -m builders.samples`, from the folder tests, writes them again."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

import wsi_stain.doctor
from builders.dicom_frames import write_frames
from builders.formats import czi, omezarr, tiff
from builders.formats.picture import picture
from builders.jpegs import jpeg
from builders.slides import write_svs
from wsi_stain.doctor.bundles import stained
from wsi_stain.model.bundle import Bundle, shipped

SIZE = (128, 192)
FOLDER = Path(wsi_stain.doctor.__file__).parent / "samples"


def small(*_: int) -> np.ndarray:
    """The picture of all samples: uint8 (128, 192, 3)."""
    return picture(*SIZE)


def write(folder: Path) -> None:
    """Write every sample into an empty folder."""
    pixels = small()
    Image.fromarray(pixels).save(folder / "image.png", optimize=True)
    write_svs(folder / "tifffile.svs", pixels, quality=95)
    tiff.leica(folder / "leica.scn", areas=((64, 64, SIZE[1], SIZE[0]),))
    with patch.object(czi, "picture", small):
        czi.czi(folder / "pylibCZIrw.czi", codec="Zstd", factors=(1,))
    for name, photometric in (("openslide", "YBR_FULL_422"), ("wsidicom", "RGB")):
        with tempfile.TemporaryDirectory() as temporary:
            (file,) = write_frames(
                Path(temporary), [pixels], lambda tile: jpeg(tile, marker="JFIF"), photometric=photometric
            )
            file.rename(folder / f"{name}.dcm")
    with tempfile.TemporaryDirectory() as temporary, patch.object(omezarr, "picture", small):
        root = Path(temporary) / "slide.zarr"
        omezarr.ome_zarr(root, version="0.5")
        with zipfile.ZipFile(folder / "zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                archive.writestr(zipfile.ZipInfo(str(file.relative_to(root.parent))), file.read_bytes())
    for name in shipped():
        if (bundle := Bundle.open(name)).folder is not None:
            Image.fromarray(stained(bundle, "cpu")).save(folder / f"bundle-{name}.png", optimize=True)


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    write(FOLDER)
