"""JPEG streams: their own markers decide what their components are."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from builders.jpegs import jpeg
from builders.slides import tissue
from PIL import Image

from wsi_stain.slide.readers.jpeg import decode_jpeg, stream_colours

PIXELS = tissue(64, 96)
TOLD = {
    ("RGB", "Adobe", "444"): "RGB",
    ("RGB", None, "444"): None,
    ("YCBCR", "JFIF", "444"): "YCBCR",
    ("YCBCR", "Adobe", "444"): "YCBCR",
    ("YCBCR", None, "444"): None,
    ("YCBCR", None, "422"): "YCBCR",
    ("YCBCR", None, "420"): "YCBCR",
}


@pytest.mark.parametrize(("inside", "marker", "subsampling"), TOLD)
@pytest.mark.parametrize("otherwise", ["RGB", "YCBCR"])
def test_the_stream_decides_and_else_the_header(
    inside: str, marker: str | None, subsampling: str, otherwise: str
) -> None:
    stream = jpeg(PIXELS, inside=inside, marker=marker, subsampling=subsampling)
    message = stream_colours(stream)
    assert message == TOLD[inside, marker, subsampling]
    difference = np.abs(decode_jpeg(stream, otherwise=otherwise).astype(int) - PIXELS).mean()
    assert (difference < 2) == ((message or otherwise) == inside)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"keep_rgb": True}, {"keep_rgb": True, "dpi": (72, 72)}])
def test_pillow_writes_what_is_recognised(options: dict) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", quality=95, **options)
    assert stream_colours(file.getvalue()) == ("RGB" if "keep_rgb" in options else "YCBCR")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\x00\x00", b"not a JPEG", bytes(99)]
)
def test_a_stream_that_is_no_jpeg_tells_nothing(data: bytes) -> None:
    assert stream_colours(data) is None


def test_every_cut_of_a_stream_tells_the_truth_or_nothing() -> None:
    stream = jpeg(PIXELS, marker="JFIF")
    assert {stream_colours(stream[:end]) for end in range(len(stream))} == {None, "YCBCR"}


def busy(seed: int = 0) -> np.ndarray:
    """A tile with detail everywhere: uint8 (128, 128, 3)."""
    noise = np.random.default_rng(seed).integers(0, 60, (32, 32, 3))
    return np.clip(tissue(128, 128) + np.kron(noise, np.ones((4, 4, 1), int)) - 30, 0, 255).astype(np.uint8)


def restarts(pixels: np.ndarray) -> bytes:
    """A stream with a restart marker after every row of blocks."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, restart_marker_rows=1)
    return file.getvalue()


STREAMS = {
    "4:4:4": lambda pixels: jpeg(pixels, marker="JFIF"),
    "4:2:0": lambda pixels: jpeg(pixels, marker="JFIF", subsampling="420"),
    "RGB": lambda pixels: jpeg(pixels, inside="RGB", marker="Adobe"),
    "restarts": restarts,
}


def scan_of(stream: bytes) -> int:
    """Where the scan's data begin."""
    start = stream.index(b"\xff\xda")
    return start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big")


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("seed", range(4))
def test_lost_parts_of_a_stream_are_damage_and_not_a_picture(kind: str, seed: int) -> None:
    stream = STREAMS[kind](busy(seed))
    start = (scan_of(stream) + len(stream)) // 2
    broken = {
        "zeros to the end": stream[:start] + bytes(len(stream) - start),
        "lost sector": stream[:start] + bytes(512) + stream[start + 512 :],
        "cut off": stream[:start],
        "the last bytes": stream[:-40],
        "marker": stream[:start] + b"\xff\xc4" + stream[start + 2 :],
    }
    pictures = []
    for name, damaged in broken.items():
        with suppress(RuntimeError):
            decode_jpeg(damaged, otherwise="YCBCR")
            pictures.append(name)
    assert pictures == []


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("grey", [None, 0, 128, 243, 255])
def test_whole_streams_are_pictures_also_blank_ones_and_without_their_end(kind: str, grey: int | None) -> None:
    pixels = busy() if grey is None else np.full((128, 128, 3), grey, np.uint8)
    stream = STREAMS[kind](pixels)
    expected = decode_jpeg(stream, otherwise="YCBCR")
    assert np.abs(expected.astype(int) - pixels).mean() < 6
    for same in (stream[:-2], stream + b"\0", stream + bytes(600)):
        np.testing.assert_array_equal(decode_jpeg(same, otherwise="YCBCR"), expected)


@pytest.mark.parametrize("size", [(17, 250), (240, 33), (8, 8), (1, 1)])
def test_blocks_outside_the_picture_are_not_damage(size: tuple[int, int]) -> None:
    for subsampling in ("444", "422", "420"):
        for pixels in (tissue(*size), np.full((*size, 3), 255, np.uint8)):
            stream = jpeg(pixels, marker="JFIF", subsampling=subsampling)
            expected = decode_jpeg(stream, otherwise="YCBCR")
            np.testing.assert_array_equal(decode_jpeg(stream[:-2], otherwise="YCBCR"), expected)


def test_blank_streams_with_tables_of_their_own_are_whole() -> None:
    file = io.BytesIO()
    Image.new("RGB", (1024, 1024), (255, 255, 255)).save(file, "JPEG", optimize=True)
    assert bytes(100) in file.getvalue(), "the run of zeros that a lost sector would leave"
    assert (decode_jpeg(file.getvalue(), otherwise="YCBCR") == 255).all()
