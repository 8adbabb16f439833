"""What is mutated, and how it is used: one entry for each kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import tifffile
import torch
import yaml
from builders.dicom_frames import write_frames
from builders.formats.all import FORMATS
from builders.jpegs import jpeg
from builders.runs import make_run
from builders.slides import profile, tissue, write_svs
from builders.tiffs import write_aperio_j2k, write_pyramid, write_tiff
from PIL import Image

from wsi_stain.cohort.check import checked
from wsi_stain.cohort.request import CohortConfig, CohortRequest
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.config.convert import ConvertConfig
from wsi_stain.config.loader import load
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import DEFAULT, Bundle
from wsi_stain.model.training_run import TrainingRun
from wsi_stain.output.ometiff import problems
from wsi_stain.pairs.pair import find_pairs, read_pair
from wsi_stain.slide.brightfield import check_brightfield
from wsi_stain.slide.slide import Slide
from wsi_stain.tissue.detect import find_tissue
from wsi_stain.tissue.mask import from_geojson
from wsi_stain.train import checkpoint
from wsi_stain.view.tiff_tiles import StoredTiles

LARGE_PX = 1 << 27
"""Slides with more pixels are opened and read in places; a whole one takes longer than an input may."""
PIXELS = tissue(300, 420)
LARGE_FORMATS = ("leica", "philips", "ventana", "huron", "argos", "ndpi", "mirax", "bioformats2raw", "ome-zarr-0.5")
SMALL_FORMATS = ("vms", "czi-zstd", "czi-jpegxr", "ome-planes", "trestle", "ome-zarr-0.4", "dicom-jpeg")


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    build: Callable[[Path], object]
    """Writes a good one at a path or into a folder."""
    use: Callable[[Path], object]
    name: str = ""
    """File to write; a folder if empty."""
    weight: int = 4
    """How often it is taken."""


def use_slide(path: Path) -> None:
    """All that `info`, `view` and `convert` ask of a slide, in a few places."""
    with Slide.open(path) as slide:
        assert slide.properties["backend"]
        stored = StoredTiles(slide)
        for level in stored.levels:
            stored.read(level, 0, 0)
        stored.close()
        if slide.size.h * slide.size.w <= LARGE_PX:
            find_tissue(slide)
            check_brightfield(slide)
        view = slide.at(None)
        h, w = view.size
        for y, x in ((0, 0), (h // 2, w // 2), (h - 64, w - 64)):
            with suppress(UnreadableRegion):
                pixels = view.read(Box.at(y, x, Size(128, 128)))
                assert pixels.shape == (128, 128, 3)


def use_slide_in(folder: Path) -> None:
    """The slide in a folder, or the folder itself."""
    names = [p for p in folder.iterdir() if p.suffix in (".svs", ".mrxs", ".vms", ".czi", ".zarr")]
    names += [p for p in folder.iterdir() if p.suffix in (".tif", ".tiff", ".scn", ".bif", ".ndpi", ".avs")]
    for nested in folder.iterdir():
        names += sorted(nested.glob("*.vms")) if nested.is_dir() and not names else []
    use_slide(names[0] if names else next(folder.iterdir()))


def use_table(path: Path) -> None:
    """A table of pairs, and a samplesheet."""
    for use in (find_pairs, lambda sheet: checked(CohortRequest(str(sheet), sheet.parent / "out", model="identity"))):
        with suppress_ours():
            use(path)


def use_config(path: Path) -> None:
    """A configuration of every kind."""
    for cls in (ConvertConfig, TrainConfig, ClusterConfig, CohortConfig):
        with suppress_ours():
            load(cls, path)


def suppress_ours() -> suppress:
    """Let the next use be tried, too."""
    from wsi_stain.errors import WsiStainError

    return suppress(WsiStainError)


def use_bundle(folder: Path) -> None:
    """Open and stain."""
    Bundle.open(folder).generator("cpu")(np.zeros((1, 256, 256, 3), np.uint8))


def use_run(folder: Path) -> None:
    """As `models pack` does."""
    training = TrainingRun.open(folder, "ceff")
    training.bundle_config("x", "1.0.0", training.weights, "MIT")


def use_checkpoint(path: Path) -> None:
    """As a resumed training does."""
    checkpoint.load(path)


def use_pairs(folder: Path) -> None:
    """Every pair of a folder."""
    for pair in find_pairs(folder):
        read_pair(pair)


def build_bundle(folder: Path) -> None:
    """A copy of the shipped one, with weights of its own that are small."""
    source = Bundle.open(DEFAULT).folder
    assert source
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())


def build_run(folder: Path) -> None:
    """A finished training."""
    run = make_run(folder / "run")
    for path in run.iterdir():
        path.rename(folder / path.name)
    run.rmdir()


def build_checkpoint(path: Path) -> None:
    """Tensors and facts."""
    tensors = {f"generator.{n}.weight": torch.zeros(4, 3, 3, 3) for n in range(5)}
    path.write_bytes(safetensors.torch.save(tensors, {"facts": json.dumps({"images": 12, "run": "a"})}))


def build_pairs(folder: Path) -> None:
    """Pairs as PNG, JPEG and TIFF."""
    for side in ("he", "ihc"):
        (folder / side).mkdir()
        for suffix in ("png", "jpg", "tif"):
            Image.fromarray(tissue(64, 64)).save(folder / side / f"{suffix}.{suffix}")


def build_geojson(path: Path) -> None:
    """A polygon with a hole, a collection, and properties."""
    ring = [[10, 10], [200, 12.5], [180, 220], [20, 200], [10, 10]]
    hole = [[50, 50], [60, 50], [60, 60], [50, 50]]
    features = [
        {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {"name": "a"}}
        for kind, coordinates in (("Polygon", [ring, hole]), ("MultiPolygon", [[ring]]))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def build_table(path: Path) -> None:
    """A table with the columns of both kinds."""
    rows = "".join(f"slide{n}.svs,s{n},0.5,a.png,b.png,train,{n},{n}\n" for n in range(5))
    path.write_text("slide,slide_id,mpp,he,ihc,split,x,y\n" + rows)


def build_config(path: Path) -> None:
    """Keys of every configuration."""
    content = {"grid": {"tile": 512, "overlap": 64}, "max_unreadable": 0.1, "output": {"quality": 90}, "pairs": "x"}
    path.write_text(yaml.safe_dump({**content, "class": "slurm", "cores": 2, "memory": "8 GiB", "base": "none.yaml"}))


def build_dicom(path: Path, photometric: str) -> None:
    """One instance."""
    (made,) = write_frames(path.parent / "made", [PIXELS], lambda t: jpeg(t, marker="JFIF"), photometric=photometric)
    made.rename(path)
    (path.parent / "made").rmdir()


def build_ome(path: Path) -> None:
    """Three channels with OME-XML."""
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["R", "G", "B"]}}
    tifffile.imwrite(path, np.moveaxis(PIXELS, 2, 0), photometric="minisblack", tile=(128, 128), metadata=metadata)


def use_validate(path: Path) -> None:
    """`validate`."""
    problems(path)


KINDS: dict[str, Kind] = {
    "svs": Kind(lambda p: write_svs(p, PIXELS), use_slide, "a.svs", 12),
    "j2k": Kind(lambda p: write_aperio_j2k(p, PIXELS, code=33005, photometric=2), use_slide, "a.svs", 8),
    "tiff": Kind(lambda p: write_pyramid(p, [PIXELS, PIXELS[::2, ::2]]), use_slide, "a.tif", 12),
    "lzw": Kind(
        lambda p: write_tiff(p, PIXELS, iccprofile=profile(1.4), compression="lzw", predictor=True),
        use_slide,
        "a.tif",
        6,
    ),
    "webp": Kind(lambda p: write_tiff(p, PIXELS, compression="webp"), use_slide, "a.tif"),
    "zstd": Kind(lambda p: write_tiff(p, PIXELS, compression="zstd"), use_slide, "a.tif"),
    "jpegxl": Kind(lambda p: write_tiff(p, PIXELS, compression="jpegxl"), use_slide, "a.tif"),
    "jpegxr": Kind(lambda p: write_tiff(p, PIXELS, compression="jpegxr"), use_slide, "a.tif"),
    "strips": Kind(lambda p: write_tiff(p, PIXELS, tile=None, rowsperstrip=32), use_slide, "a.tif"),
    "ome": Kind(build_ome, use_slide, "a.ome.tif", 10),
    "validate": Kind(build_ome, use_validate, "a.ome.tif", 4),
    "jpeg": Kind(lambda p: Image.fromarray(PIXELS).save(p, icc_profile=profile(1.4)), use_slide, "a.jpg", 6),
    "png": Kind(lambda p: Image.fromarray(PIXELS).save(p, icc_profile=profile(1.4)), use_slide, "a.png", 6),
    "dicom": Kind(lambda p: build_dicom(p, "YBR_FULL_422"), use_slide, "a.dcm", 10),
    "wsidicom": Kind(lambda p: build_dicom(p, "RGB"), use_slide, "a.dcm", 10),
    **{name: Kind(FORMATS[name], use_slide_in, weight=2) for name in LARGE_FORMATS},
    **{name: Kind(FORMATS[name], use_slide_in, weight=4) for name in SMALL_FORMATS},
    "geojson": Kind(build_geojson, lambda p: from_geojson(p, Size(300, 420)), "a.geojson", 24),
    "table": Kind(build_table, use_table, "a.csv", 12),
    "config": Kind(build_config, use_config, "a.yaml", 12),
    "bundle": Kind(build_bundle, use_bundle, weight=4),
    "run": Kind(build_run, use_run, weight=4),
    "checkpoint": Kind(build_checkpoint, use_checkpoint, "a.safetensors", 8),
    "pairs": Kind(build_pairs, use_pairs, weight=10),
}
