"""µm/px in every spelling that files use, and one place for its limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from builders.slides import tissue

from wsi_stain.config.ranges import MAX_MPP, MIN_MPP
from wsi_stain.errors import SlideError
from wsi_stain.slide.lengths import in_um, number, um_per
from wsi_stain.slide.slide import Slide

PIXELS = tissue(200, 260)
OPTIONS: dict = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
APERIO = "Aperio Image Library v12.0.15 \r\n260x200 [0,0 260x200] (128x128) JPEG/RGB Q=90"


def described(path: Path, text: str | bytes, **options: object) -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    tag = (270, 2, len(data) + 1, data + b"\0", True)
    tifffile.imwrite(
        path, PIXELS, extratags=[tag], **{**OPTIONS, "resolution": None, "resolutionunit": None, **options}
    )
    return path


def mpp_of(path: Path) -> float | None:
    with Slide.open(path) as slide:
        return slide.mpp_or_none


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25", 0.25), ("0,25", 0.25), (" 0,2500 ", 0.25), ("1e-1", 0.1), ("1,2,3", None), ("nan", None), ("", None)],
)
def test_numbers(text: str, value: float | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        *[(unit, 1.0) for unit in ("µm", "μm", "um", "micron", "microns", "\\u00B5m", "Micrometer", "micrometres")],
        *[("nm", 1e-3), ("Å", 1e-4), ("\u212b", 1e-4), ("angstroms", 1e-4), ("mm", 1e3), ("cm", 1e4), ("m", 1e6)],
        *[("in", 25400), ("inch", 25400), ("inches", 25400), ("pixel", None), ("reference frame", None), ("", None)],
    ],
)
def test_units(unit: str, um: float | None) -> None:
    assert um_per(unit) == um
    assert in_um("2", unit) == (None if um is None else pytest.approx(2 * um))
    assert in_um("0", unit) is None


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        ("|AppMag = 40|MPP = 0.25", 0.25),
        ("|AppMag = 40|MPP = 0,2500", 0.25),
        ("|AppMag=40|MPP=0.25", 0.25),
        ("|Title = Mag = 40X, quality = 30|MPP = 0.25", 0.25),
        ("|ScanScope ID|MPP = 0.25|", 0.25),
        ("|MPP = 0.25|AppMag = 40|MPP = 0.25", 0.25),
        (";" + APERIO + "|AppMag = 40|MPP = 0.25", 0.25),
        ("|AppMag = 40|MPP = 0", None),
        ("|AppMag = 40", None),
    ],
)
def test_aperio(tmp_path: Path, text: str, mpp: float | None) -> None:
    path = described(tmp_path / "a.svs", APERIO + text)
    assert mpp_of(path) == mpp
    with openslide.OpenSlide(path) as other:
        assert float(other.properties.get("openslide.mpp-x", 0)) == (mpp or 0)


@pytest.mark.parametrize("user", ["M\xfcller".encode("latin-1"), "李".encode()])
def test_aperio_in_any_encoding(tmp_path: Path, user: bytes) -> None:
    assert mpp_of(described(tmp_path / "a.svs", APERIO.encode() + b"|User = " + user + b"|MPP = 0.25")) == 0.25


@pytest.mark.parametrize(
    ("unit", "per_px"),
    [*((unit, 1) for unit in ("\\u00B5m", "µm", "micron", "um")), ("nm", 1e3), ("cm", 1e-4), ("inch", 1 / 25400)],
)
def test_imagej(tmp_path: Path, unit: str, per_px: float) -> None:
    text = f"ImageJ=1.54f\nunit={unit}\n".encode("latin-1")
    path = described(tmp_path / "a.tif", text, resolution=(4 / per_px, 4 / per_px), resolutionunit=1)
    assert mpp_of(path) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((40_000, 40_000), "CENTIMETER", 0.25),
        ((101_600, 101_600), "INCH", 0.25),
        ((40_000, 40_000), "NONE", None),
        ((72, 72), "INCH", None),
    ],
)
def test_resolution_tags(tmp_path: Path, resolution: tuple[int, int], unit: str, mpp: float | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=resolution, resolutionunit=unit, **OPTIONS)
    assert mpp_of(tmp_path / "a.tif") == mpp


@pytest.mark.parametrize("value", [(0, 1), (0, 0), (1, 0)])
def test_a_resolution_of_nothing_is_none(tmp_path: Path, value: tuple[int, int]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, resolution=(40_000, 40_000), resolutionunit="CENTIMETER", **OPTIONS)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for tag in (282, 283):
            tiff.pages[0].tags[tag].overwrite(value)
    with Slide.open(path) as slide, pytest.raises(SlideError, match=r"a\.tif has no pixel size .*; pass --mpp"):
        _ = slide.mpp


@pytest.mark.parametrize(
    ("unit", "size"), [("nm", 250), ("mm", 0.00025), ("Å", 2500), ("in", 0.25 / 25400), ("µm", 0.25)]
)
@pytest.mark.parametrize("layout", ["YXS", "ZYXS", "SYX"])
def test_ome(tmp_path: Path, unit: str, size: float, layout: str) -> None:
    pixels = {"YXS": PIXELS, "ZYXS": np.stack([PIXELS] * 3), "SYX": np.moveaxis(PIXELS, -1, 0)}[layout]
    metadata = (
        {"axes": layout} | {f"PhysicalSize{a}": size for a in "XY"} | {f"PhysicalSize{a}Unit": unit for a in "XY"}
    )
    options = {**OPTIONS, "compression": None, "metadata": metadata}
    if layout == "SYX":
        options["planarconfig"] = "separate"
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, ome=True, **options)
    assert mpp_of(tmp_path / "a.ome.tif") == pytest.approx(0.25)


def test_the_limits_are_the_same_in_every_room() -> None:
    from wsi_stain.cohort import sheet
    from wsi_stain.output.ometiff import rules_xml
    from wsi_stain.slide import pixel_size

    for module in (sheet, rules_xml, pixel_size):  # all import those of the settings
        assert (module.MIN_MPP, module.MAX_MPP) == (MIN_MPP, MAX_MPP) == (0.05, 10)
