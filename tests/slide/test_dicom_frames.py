"""DICOM: the frames are believed before the header, and what OpenSlide refuses is read with wsidicom."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from builders.dicom_frames import HTJ2K, J2K, JPEG_LS, RAW, write_frames
from builders.jpegs import jpeg
from builders.slides import tissue
from PIL import Image

from wsi_stain.errors import SlideError, UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.slide import Slide

pytest.importorskip("wsidicom", reason="the extra [dicom] is not installed")

PIXELS = tissue(300, 420)
LEVELS = [PIXELS, PIXELS[::4, ::4]]
COLOURS = [("RGB", "Adobe", "444"), ("YCBCR", "JFIF", "444"), ("YCBCR", "Adobe", "444"), ("YCBCR", None, "420")]


def ycbcr(tile: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(tile).convert("YCbCr"))


def j2k(tile: np.ndarray, *, mct: bool) -> bytes:
    return imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=0, reversible=True, mct=mct)


def error(path: Path, expected: np.ndarray = PIXELS) -> float:
    """Mean difference in grey levels from what was written, at level 0."""
    with Slide.open(path) as slide:
        return float(np.abs(slide.at(None).read(Box.of(slide.size)).astype(int) - expected).mean())


@pytest.mark.parametrize(
    ("colours", "header"),
    list(product(COLOURS, ["RGB", "YBR_FULL", "YBR_FULL_422"])),
    ids=lambda value: "-".join(map(str, value)),
)
def test_a_jpeg_frame_is_believed_before_the_header(tmp_path: Path, colours: tuple, header: str) -> None:
    inside, marker, subsampling = colours
    paths = write_frames(
        tmp_path,
        LEVELS,
        lambda tile: jpeg(tile, inside=inside, marker=marker, subsampling=subsampling),
        photometric=header,
    )
    assert error(paths[0]) < 2
    with Slide.open(tmp_path) as slide:
        assert (slide.mpp, slide.magnification, len(slide.levels)) == (0.5, 20, 2)
        low = slide._backend.read(1, Box.of(slide.levels[1].size))
        assert np.abs(low.astype(int) - LEVELS[1]).mean() < 2


@pytest.mark.parametrize(("header", "inside"), [("RGB", "RGB"), ("YBR_FULL", "YCBCR"), ("YBR_FULL_422", "YCBCR")])
def test_the_header_counts_where_the_frame_tells_nothing(tmp_path: Path, header: str, inside: str) -> None:
    paths = write_frames(tmp_path, LEVELS, lambda tile: jpeg(tile, inside=inside), photometric=header)
    assert error(paths[0]) < 2


CODECS = {
    "JPEG-LS": (JPEG_LS, "RGB", imagecodecs.jpegls_encode),
    "HTJ2K": (HTJ2K, "YBR_RCT", imagecodecs.htj2k_encode),
    "JPEG 2000": (J2K, "YBR_RCT", lambda tile: j2k(tile, mct=True)),
    "JPEG 2000 of YCbCr": (J2K, "YBR_FULL", lambda tile: j2k(ycbcr(tile), mct=False)),
    "JPEG 2000 that says YCbCr and transforms": (J2K, "YBR_FULL", lambda tile: j2k(tile, mct=True)),
    "uncompressed": (RAW, "RGB", np.ndarray.tobytes),
}


@pytest.mark.parametrize("name", CODECS)
def test_other_codecs_are_exact(tmp_path: Path, name: str) -> None:
    syntax, photometric, encode = CODECS[name]
    paths = write_frames(tmp_path, LEVELS, encode, syntax=syntax, photometric=photometric)
    assert error(paths[0]) < (1 if "of YCbCr" in name else 1e-9)  # YCbCr rounds


def test_ycbcr_that_no_library_converts_is_refused_by_name(tmp_path: Path) -> None:
    paths = write_frames(tmp_path, LEVELS, lambda tile: ycbcr(tile).tobytes(), syntax=RAW, photometric="YBR_FULL")
    with pytest.raises(SlideError, match=r"level0\.dcm .*Unsupported photometric interpretation YBR_FULL"):
        Slide.open(paths[0])


def test_false_colours_are_refused_without_wsidicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_frames(tmp_path, LEVELS, lambda tile: jpeg(tile, marker="JFIF"), photometric="RGB")
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    with pytest.raises(SlideError, match=r"level0\.dcm needs wsidicom.*wsi-stain\[dicom\].*declares RGB.*are YCbCr"):
        Slide.open(paths[0])


def test_tiles_that_were_not_scanned_are_white(tmp_path: Path) -> None:
    paths = write_frames(tmp_path, [PIXELS], lambda tile: jpeg(tile, marker="JFIF"), missing=[5], photometric="RGB")
    expected = PIXELS.copy()
    expected[128:256, 128:256] = 255
    assert error(paths[0], expected) < 2


def test_the_middle_of_several_focal_planes_is_read(tmp_path: Path) -> None:
    planes = np.stack([np.full_like(PIXELS, value) for value in (40, 120, 200)])
    planes[1] = PIXELS
    paths = write_frames(tmp_path, [planes], jpeg, photometric="YBR_FULL_422")
    assert error(paths[0]) < 2
    with Slide.open(paths[0]) as slide:
        assert slide.plane == 1
        assert "3 focal planes, 0 to 2: 1, the middle one, is read" in slide.notes[0]
    for z, value in ((0, 40), (2, 200)):
        with Slide.open(paths[0], z=z) as slide:
            assert slide.plane == z
            assert abs(slide.at(None).read(Box(0, 0, 64, 64)).astype(int) - value).max() <= 3
    with pytest.raises(SlideError, match="has no plane 3; pass --z between 0 and 2"):
        Slide.open(paths[0], z=3)


def test_another_series_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    other = tissue(600, 700, seed=3)
    paths = write_frames(tmp_path, LEVELS, lambda tile: jpeg(tile, marker="JFIF"), photometric="RGB")
    write_frames(tmp_path, [other], lambda tile: jpeg(tile, marker="JFIF"), photometric="RGB", prefix="other")
    assert error(paths[0]) < 2
    assert error(tmp_path / "other0.dcm", other) < 2


def test_a_frame_of_jpeg_2000_with_a_lost_end_fails_alone(tmp_path: Path) -> None:
    def encode(tile: np.ndarray) -> bytes:
        stream = j2k(ycbcr(tile), mct=False)
        is_first = np.array_equal(tile, PIXELS[:128, :128])
        return stream[: len(stream) // 2] + bytes(len(stream) // 2) if is_first else stream

    (path,) = write_frames(tmp_path, [PIXELS], encode, syntax=J2K, photometric="YBR_FULL")
    with Slide.open(path) as slide:
        view = slide.at(None)
        with pytest.raises(UnreadableRegion):
            view.read(Box(0, 0, 10, 10))
        assert np.abs(view.read(Box(0, 128, 128, 256)).astype(int) - PIXELS[:128, 128:256]).mean() < 1


def test_a_damaged_frame_fails_alone(tmp_path: Path) -> None:
    (path,) = write_frames(tmp_path, [PIXELS], lambda tile: jpeg(tile, marker="JFIF"), photometric="RGB")
    data = bytearray(path.read_bytes())
    first = data.index(b"\xff\xd8", data.index(b"\xe0\x7f\x10\x00OB"))
    data[first : first + 700] = bytes(700)
    path.write_bytes(data)
    with Slide.open(path) as slide:
        view = slide.at(None)
        with pytest.raises(UnreadableRegion, match="cannot be decoded"):
            view.read(Box(0, 0, 10, 10))
        assert np.abs(view.read(Box(128, 0, 300, 420)).astype(int) - PIXELS[128:]).mean() < 2


def test_the_real_series_equals_the_slide_that_it_was_made_from(data: Path) -> None:
    slides = data / "slides"
    with (
        Slide.open(slides / "dicom_CMU-1-Small-Region") as series,
        Slide.open(slides / "CMU-1-Small-Region.svs") as svs,
    ):
        assert (series.backend, series.mpp, series.size) == ("wsidicom", 0.499, Size(2967, 2220))
        np.testing.assert_array_equal(series.at(None).read(Box.of(series.size)), svs.at(None).read(Box.of(svs.size)))
