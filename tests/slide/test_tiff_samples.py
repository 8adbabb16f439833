"""TIFF: photometric tag, extra samples, codec, holes and orientation are read as they are meant, or refused by name."""

from __future__ import annotations

import logging
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from builders.jpegs import jpeg
from builders.slides import profile, tissue
from builders.tiffs import PHOTOMETRIC, set_tag, tiles, write_aperio_j2k, write_encoded, write_pyramid, write_tiff
from PIL import Image

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.slide import Slide

PIXELS = tissue(300, 420)
RGB, YCBCR = 2, 6


def read(path: Path, mpp: float | None = None) -> np.ndarray:
    with Slide.open(path) as slide:
        view = slide.at(mpp)
        return view.read(Box.of(view.size))


def error(path: Path, expected: np.ndarray = PIXELS) -> float:
    return float(np.abs(read(path).astype(int) - expected).mean())


@pytest.mark.parametrize("photometric", [RGB, YCBCR])
def test_aperios_jpeg_2000_code_says_ycbcr_whatever_the_tag_says(tmp_path: Path, photometric: int) -> None:
    assert error(write_aperio_j2k(tmp_path / "a.svs", PIXELS, code=33003, photometric=photometric)) < 1


def test_aperios_other_code_and_other_writers_stay_rgb(tmp_path: Path) -> None:
    assert error(write_aperio_j2k(tmp_path / "a.svs", PIXELS, code=33005, photometric=RGB)) == 0
    streams = [imagecodecs.jpeg2k_encode(tile, level=0, mct=False, reversible=True) for tile in tiles(PIXELS)]
    assert error(write_encoded(tmp_path / "b.tif", PIXELS, streams, compression=33003)) == 0


@pytest.mark.parametrize("tag", [RGB, YCBCR])
@pytest.mark.parametrize(
    ("inside", "marker", "subsampling"),
    [("RGB", "Adobe", "444"), ("YCBCR", "Adobe", "444"), ("YCBCR", "JFIF", "444"), ("YCBCR", None, "420")],
)
def test_a_jpeg_tile_is_believed_before_the_tag(
    tmp_path: Path, tag: int, inside: str, marker: str | None, subsampling: str
) -> None:
    streams = [jpeg(tile, inside=inside, marker=marker, subsampling=subsampling) for tile in tiles(PIXELS)]
    path = set_tag(write_encoded(tmp_path / "a.tif", PIXELS, streams, compression="jpeg"), PHOTOMETRIC, tag)
    assert error(path) < 2


@pytest.mark.parametrize(("inside", "tag"), [("RGB", RGB), ("YCBCR", YCBCR)])
def test_the_tag_counts_where_the_jpeg_tells_nothing(tmp_path: Path, inside: str, tag: int) -> None:
    streams = [jpeg(tile, inside=inside) for tile in tiles(PIXELS)]
    path = set_tag(write_encoded(tmp_path / "a.tif", PIXELS, streams, compression="jpeg"), PHOTOMETRIC, tag)
    assert error(path) < 2


def test_each_jpeg_tile_counts_for_itself(tmp_path: Path) -> None:
    kinds = [{"inside": "RGB", "marker": "Adobe"}, {"marker": "JFIF"}]
    streams = [jpeg(tile, **kinds[n % 2]) for n, tile in enumerate(tiles(PIXELS))]
    assert error(write_encoded(tmp_path / "a.tif", PIXELS, streams, compression="jpeg")) < 2


OPACITY = np.repeat(np.linspace(0, 255, 420).astype(np.uint8)[None], 300, axis=0)
SHARE = OPACITY[..., None] / 255
OVER_WHITE = PIXELS * SHARE + 255 * (1 - SHARE)


@pytest.mark.parametrize("codec", ["deflate", "lzw", "none"])
def test_a_fourth_sample_is_what_extrasamples_says(tmp_path: Path, codec: str) -> None:
    path, compression = tmp_path / "a.tif", None if codec == "none" else codec

    def four(colours: np.ndarray, kind: str) -> np.ndarray:
        write_tiff(path, np.dstack([colours, OPACITY]), extrasamples=[kind], compression=compression)
        return read(path).astype(float)

    np.testing.assert_array_equal(four(PIXELS, "unspecified"), PIXELS)
    assert np.abs(four(PIXELS, "unassalpha") - OVER_WHITE).max() <= 0.51
    assert np.abs(four((PIXELS * SHARE).round().astype(np.uint8), "assocalpha") - OVER_WHITE).max() <= 0.51


@pytest.mark.parametrize("codec", ["deflate", "jpeg"])
def test_cmyk_is_converted(tmp_path: Path, codec: str) -> None:
    inks = np.dstack([255 - PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    path = write_tiff(tmp_path / "a.tif", inks, photometric="separated", compression=codec)
    assert error(path) < (4 if codec == "jpeg" else 1e-9)
    inks[..., 3] = 128
    path = write_tiff(tmp_path / "b.tif", inks, photometric="separated", compression="deflate")
    assert np.abs(read(path) - PIXELS * (127 / 255)).max() <= 0.51


def test_cmyk_with_a_printing_profile_is_refused(tmp_path: Path) -> None:
    printing = profile(1.8)
    printing = printing[:16] + b"CMYK" + printing[20:]
    inks = np.dstack([255 - PIXELS, PIXELS[..., 0]])
    path = write_tiff(tmp_path / "a.tif", inks, photometric="separated", iccprofile=printing)
    with pytest.raises(SlideError, match=r"^a\.tif stores CMYK with a printing profile; convert it"):
        Slide.open(path)


PLANES = np.moveaxis(PIXELS, 2, 0)


@pytest.mark.parametrize("codec", [None, "deflate", "lzw"])
@pytest.mark.parametrize("tile", [(128, 128), None])
def test_separate_planes_are_put_together(tmp_path: Path, codec: str | None, tile: tuple | None) -> None:
    path = write_tiff(tmp_path / "a.tif", PLANES, planarconfig="separate", compression=codec, tile=tile)
    assert error(path) == 0


@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "CZYX"])
@pytest.mark.parametrize("names", [["R", "G", "B"], ["Channel:0:0", "Channel:0:1", "Channel:0:2"], None])
def test_three_channels_without_a_dye_are_red_green_and_blue(tmp_path: Path, axes: str, names: list | None) -> None:
    planes = PLANES
    if "Z" in axes:
        planes = np.stack([np.full_like(PLANES, 9), PLANES, np.full_like(PLANES, 7)], axis=axes.index("Z"))
    metadata = {"axes": axes, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} | (
        {"Channel": {"Name": names}} if names else {}
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, planes, photometric="minisblack", tile=(128, 128), metadata=metadata)
    assert error(path) == 0


def test_three_dyes_are_refused(tmp_path: Path) -> None:
    for channel in ({"Name": ["DAPI", "FITC", "Cy3"]}, {"EmissionWavelength": [450, 520, 570]}):
        path = tmp_path / "a.ome.tif"
        metadata = {"axes": "CYX", "Channel": channel}
        tifffile.imwrite(path, PLANES, photometric="minisblack", tile=(128, 128), metadata=metadata)
        with pytest.raises(SlideError, match=r"3×300×420 \(CYX\) values, not RGB pixels; fluorescence"):
            Slide.open(path)


REFUSED = {
    "palette": (
        lambda p: Image.fromarray(PIXELS).quantize(64).save(p),
        "stores the colours of a palette, not RGB; conv",
    ),
    "lab": (
        lambda p: write_tiff(p, PIXELS, photometric="cielab"),
        r"stores CIE L\*a\*b\* colours, not RGB; convert it",
    ),
    "16 bits": (
        lambda p: write_tiff(p, PIXELS.astype(np.uint16)),
        "has 16 bits per sample .* must be 8-bit RGB; convert",
    ),
    "inks": (
        lambda p: write_tiff(p, np.dstack([PIXELS, PIXELS]), photometric="separated", extrasamples=[0, 0]),
        "not RGB pixels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_colours_are_refused_by_name(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    make(tmp_path / "a.tif")
    with pytest.raises(SlideError, match=rf"^a\.tif .*{words}"):
        Slide.open(tmp_path / "a.tif")


SQUARE = tissue(1024, 1024)
LEVELS = [SQUARE, SQUARE.reshape(256, 4, 256, 4, 3).mean((1, 3)).round().astype(np.uint8)]


@pytest.mark.parametrize("ratio", [2, 4])
def test_a_hole_above_level_0_is_filled_from_the_finer_level(tmp_path: Path, ratio: int) -> None:
    n = 1024 // ratio
    small = SQUARE.reshape(n, ratio, n, ratio, 3).mean((1, 3)).round().astype(np.uint8)
    whole = write_pyramid(tmp_path / "whole.tif", [SQUARE, small])
    holes = write_pyramid(tmp_path / "holes.tif", [SQUARE, small], absent={1: [0, 3]})
    difference = np.abs(read(holes, 0.5 * ratio).astype(int) - read(whole, 0.5 * ratio))
    assert difference.max() <= 1
    with Slide.open(holes) as slide:
        level = slide._backend.read(1, Box(0, 0, n, n))
        np.testing.assert_array_equal(slide._backend.read(1, Box(100, 90, n, 131)), level[100:, 90:131])


@pytest.mark.parametrize("absent", [[0, 1, 2, 3, 4, 5, 6, 7], [7, 15, 23, 31], [56, 57]])
def test_absent_border_tiles_are_white_and_the_size_stays(
    tmp_path: Path, absent: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    expected = SQUARE.copy()
    for n in absent:
        y, x = n // 8 * 128, n % 8 * 128
        expected[y : y + 128, x : x + 128] = 255
    with caplog.at_level(logging.WARNING):
        path = write_pyramid(tmp_path / "a.tif", [SQUARE, LEVELS[1]], absent={0: absent})
        np.testing.assert_array_equal(read(path), expected)
    assert [r.getMessage() for r in caplog.records] == [
        f"a.tif has no data for {100 * len(absent) / 64:.0f} % of its tiles; they are read as white background"
    ]


def test_a_file_with_few_of_its_tiles_is_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", [SQUARE], absent={0: list(range(1, 64))})
    with pytest.raises(SlideError, match=r"^a\.tif has no data for 98% of its tiles; .* copy it again"):
        Slide.open(path)


UPRIGHT = {  # what a reader must make of the stored picture (TIFF 6.0, tag 274)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
    9: lambda a: a,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_tag_turns_every_box(tmp_path: Path, orientation: int) -> None:
    expected = UPRIGHT[orientation](PIXELS)
    path = write_tiff(
        tmp_path / "a.tif",
        PIXELS,
        extratags=[(274, 3, 1, orientation, True)],
        resolution=(20_000, 10_000) if orientation == 6 else (20_000, 20_000),
    )
    with Slide.open(path) as slide:
        assert slide._backend.sizes == (Size(*expected.shape[:2]),)
        assert ("orientation tag" in " ".join(slide.notes)) == (2 <= orientation <= 8)
        if orientation == 6:
            assert slide._backend.metadata.mpp == pytest.approx((1.0, 0.5))
        for box in [Box.of(slide._backend.sizes[0]), Box(3, 5, 200, 170), Box(299, 17, 300, 18)]:
            np.testing.assert_array_equal(slide._backend.read(0, box), expected[box.slices()])


def test_pillow_agrees_on_every_orientation(tmp_path: Path) -> None:
    from PIL import ImageOps

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            np.testing.assert_array_equal(read(tmp_path / "a.png"), np.asarray(ImageOps.exif_transpose(image)))
