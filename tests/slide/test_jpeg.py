"""JPEG streams: their own markers decide what their components are."""

from __future__ import annotations

import io

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
