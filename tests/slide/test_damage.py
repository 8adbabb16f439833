"""Damaged files: whatever readers, codecs and parsers raise reaches the caller as one of our errors, in a sentence."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders.dicom_frames import write_frames
from builders.jpegs import jpeg
from builders.slides import ComputedBackend, profile, tissue, write_svs
from builders.tiffs import write_aperio_j2k, write_pyramid, write_tiff
from PIL import Image

from wsi_stain.errors import SlideError, UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers.tiff import RawFile
from wsi_stain.slide.slide import Slide

PIXELS = tissue(300, 420)
SEEDS = range(int(os.environ.get("WSI_STAIN_FUZZ", "25")))


def write_ome(path: Path) -> None:
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["R", "G", "B"]}}
    tifffile.imwrite(path, np.moveaxis(PIXELS, 2, 0), photometric="minisblack", tile=(128, 128), metadata=metadata)


KINDS: dict[str, Callable[[Path], object]] = {
    "jpeg.svs": lambda p: write_svs(p, PIXELS),
    "j2k.svs": lambda p: write_aperio_j2k(p, PIXELS, code=33005, photometric=2),
    "j2k-ycbcr.svs": lambda p: write_aperio_j2k(p, PIXELS, code=33003, photometric=2),
    "pyramid.tif": lambda p: write_pyramid(p, [PIXELS, PIXELS[::2, ::2]]),
    "icc.tif": lambda p: write_tiff(p, PIXELS, iccprofile=profile(1.4), compression="lzw", predictor=True),
    "strips.tif": lambda p: write_tiff(p, PIXELS, tile=None, rowsperstrip=32),
    "cmyk.tif": lambda p: write_tiff(p, np.dstack([PIXELS, PIXELS[..., 0]]), photometric="separated"),
    "channels.ome.tif": write_ome,
    "photo.jpg": lambda p: Image.fromarray(PIXELS).save(p, icc_profile=profile(1.4)),
    "picture.png": lambda p: Image.fromarray(PIXELS).save(p, icc_profile=profile(1.4)),
    "openslide.dcm": lambda p: dicom(p, "YBR_FULL_422"),
    "wsidicom.dcm": lambda p: dicom(p, "RGB"),
}


def dicom(path: Path, photometric: str) -> None:
    (made,) = write_frames(path.parent / "made", [PIXELS], lambda t: jpeg(t, marker="JFIF"), photometric=photometric)
    made.rename(path)


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, a part zeroed, or the end cut off; headers are hit more often than their share."""
    out = bytearray(data)
    kind = random.integers(4)
    if kind == 0:
        return bytes(out[: random.integers(1, len(out))])
    if kind == 1:
        start = random.integers(len(out))
        part = slice(start, min(len(out), start + random.integers(1, 600)))
        out[part] = bytes(part.stop - part.start)
        return bytes(out)
    reach = len(out) if kind == 2 else min(len(out), 1500)
    places = random.integers(reach, size=random.integers(1, 12))
    for place in places if random.integers(2) else len(out) - 1 - places:
        out[place] = random.choice([0, 1, 255, random.integers(256)])
    return bytes(out)


def use(path: Path) -> None:
    """Everything that a conversion asks of a slide."""
    with Slide.open(path) as slide:
        assert slide.properties["backend"]
        if max(slide.size) > 4000:
            return  # a size that was made up: fine, but slow to read
        slide.thumbnail(64)
        for index, level in enumerate(slide.levels):
            slide.at(None if index == 0 or not slide.mpp_or_none else slide.mpp * min(4, float(level.downsample)))
        view = slide.at(None)
        for y in range(0, view.size.h, 128):
            try:
                pixels = view.read(Box(y, 0, y + 128, view.size.w))
            except UnreadableRegion:
                continue
            assert pixels.shape == (128, view.size.w, 3)
            assert pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")  # what libraries warn of is theirs; here only what reaches the caller counts
@pytest.mark.parametrize("name", KINDS)
def test_no_foreign_exception_passes(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    KINDS[name](path)
    use(path)
    good, sentences = path.read_bytes(), []
    for seed in SEEDS:
        path.write_bytes(mutate(good, np.random.default_rng([seed, zlib.crc32(name.encode())])))
        try:
            use(path)
        except SlideError as err:
            sentences.append((seed, str(err)))
        except Exception as err:
            raise AssertionError(f"seed {seed}: {type(err).__name__}: {err}") from err
    assert [sentence for sentence in sentences if "\n" in sentence[1]] == []
    assert capfd.readouterr() == ("", ""), "a library wrote to the screen"


@pytest.mark.parametrize("resolution", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("tile", [(128, 128), None])
def test_a_resolution_that_is_no_number_is_a_missing_one(tmp_path: Path, resolution: tuple, tile: tuple | None) -> None:
    path = write_tiff(tmp_path / "a.tif", PIXELS, tile=tile)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for tag in (282, 283):
            tiff.pages[0].tags[tag].overwrite(resolution)
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(slide.at(None).read(Box.of(slide.size)), PIXELS)
        with pytest.raises(SlideError, match=r"^a\.tif has no pixel size .*; pass --mpp"):
            _ = slide.mpp


def lab() -> bytes:
    """A profile of another space than RGB."""
    good = profile(1.4)
    return good[:16] + b"Lab " + good[20:]


@pytest.mark.parametrize("icc", [b"x" * 500, profile(1.4)[:200], profile(1.4)[:-100], bytes(40), lab()])
@pytest.mark.parametrize("tile", [(128, 128), None])
def test_a_damaged_profile_leaves_the_colours_alone_with_a_warning(
    tmp_path: Path, icc: bytes, tile: tuple | None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with Slide.open(write_tiff(tmp_path / "a.tif", PIXELS, tile=tile, iccprofile=icc)) as slide:
        np.testing.assert_array_equal(slide.at(None).read(Box.of(slide.size)), PIXELS)
    assert "a.tif: the ICC profile cannot be used" in caplog.text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), RecursionError(), OverflowError(), EOFError("end")])
def test_an_error_of_a_codec_becomes_an_unreadable_region(error: Exception) -> None:
    slide = Slide(Path("a.svs"), ComputedBackend([Size(64, 64)], lambda *_: None))

    def broken(level: int, box: Box) -> np.ndarray:
        raise error

    slide._backend.read = broken
    with pytest.raises(UnreadableRegion, match=type(error).__name__) as caught:
        slide.at(None).read(Box(0, 0, 8, 8))
    assert caught.value.box == Box(0, 0, 8, 8)
    slide._backend.read = lambda level, box: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(SlideError, match="not enough memory") as caught:
        slide.at(None).read(Box(0, 0, 8, 8))
    assert not isinstance(caught.value, UnreadableRegion)


def test_an_error_of_a_parser_becomes_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "a.svs", PIXELS)

    def broken(path: Path) -> None:
        raise ZeroDivisionError("Fraction(1, 0)")

    monkeypatch.setattr("wsi_stain.slide.readers.choose.OpenSlideBackend", broken)
    with pytest.raises(SlideError, match=r"^a\.svs cannot be opened \(Fraction\(1, 0\)\); "):
        Slide.open(path)


def test_a_strip_that_cannot_be_decoded_is_not_decoded_for_every_part_of_an_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A strip as large as the slide is decoded in whole for each part: damaged JPEG XL took more than ten seconds.
    path = write_tiff(tmp_path / "a.tif", PIXELS, tile=None, rowsperstrip=300)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    with Slide.open(path) as slide:
        (source,) = slide._backend._levels
        (plane,), calls = source.planes, []
        counted = dataclasses.replace(plane, decode=lambda *given: calls.append(1) or plane.decode(*given))
        slide._backend._levels = (dataclasses.replace(source, planes=(counted,)),)
        assert (slide.thumbnail(256) == 255).all()
        assert len(calls) == 2
        with pytest.raises(UnreadableRegion):
            slide.at(None).read(Box(0, 0, 8, 8))
        assert len(calls) == 2


def test_a_read_that_failed_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "a.tif", PIXELS)
    with Slide.open(path) as slide:
        real = RawFile.read

        def failing(self: RawFile, offset: int, count: int) -> bytes:
            raise OSError(5, "Input/output error")

        for _ in range(3):
            monkeypatch.setattr(RawFile, "read", failing)
            with pytest.raises(UnreadableRegion, match="Input/output error"):
                slide.at(None).read(Box(0, 0, 8, 8))
        monkeypatch.setattr(RawFile, "read", real)
        np.testing.assert_array_equal(slide.at(None).read(Box(0, 0, 8, 8)), PIXELS[:8, :8])


def test_a_message_quotes_a_part_of_what_a_file_holds_on_one_line() -> None:
    message = str(SlideError("a.tif is compressed with " + ", ".join(map(str, range(9999))) + "\n; convert it"))
    assert len(message) < 1010
    assert message.startswith("a.tif is compressed with 0, 1")
    assert message.endswith("; convert it")
    assert "\n" not in message
