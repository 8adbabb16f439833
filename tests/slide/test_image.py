"""Ordinary images: one decoder for slides, pairs and the images of other tools, whatever the form of the pixels."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_stain.errors import ConfigError, SlideError, TrainingError
from wsi_stain.evaluate.contenders import from_folder
from wsi_stain.evaluate.figures import FieldPixels
from wsi_stain.geometry import Box
from wsi_stain.pairs.pair import Pair, read_pair
from wsi_stain.slide.readers.base import UnsupportedFormat
from wsi_stain.slide.readers.choose import open_backend
from wsi_stain.slide.readers.image import decode

H, W = 20, 30
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.random.default_rng(1).integers(0, 256, (H, W), dtype=np.uint8)
PALETTE = np.random.default_rng(2).integers(0, 256, (256, 3), dtype=np.uint8)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def palette_image() -> Image.Image:
    image = Image.fromarray(GREY, "P")
    image.putpalette(PALETTE.tobytes())
    return image


def rgba() -> Image.Image:
    return Image.fromarray(np.dstack([RGB, ALPHA]))


def grey_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([GREY, ALPHA]))


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif)


EXPECTED: dict[str, tuple[Callable[[Path], object], np.ndarray]] = {
    "rgb.png": (lambda p: Image.fromarray(RGB).save(p), RGB),
    "rgb.tif": (lambda p: tifffile.imwrite(p, RGB, photometric="rgb"), RGB),
    "rgba.png": (lambda p: rgba().save(p), over_white(RGB, ALPHA)),
    "rgba.tif": (lambda p: rgba().save(p), over_white(RGB, ALPHA)),
    "palette.png": (lambda p: palette_image().save(p), PALETTE[GREY]),
    "palette-clear.png": (
        lambda p: palette_image().save(p, transparency=7),
        over_white(PALETTE[GREY], np.where(GREY == 7, 0, 255)),
    ),
    "rgb-clear.png": (
        lambda p: Image.fromarray(RGB).save(p, transparency=tuple(int(v) for v in RGB[3, 4])),
        over_white(RGB, np.where((RGB[3, 4] == RGB).all(-1), 0, 255)),
    ),
    # Rows and columns of EXIF 2.32, 4.6.4, Orientation: 3 turns by 180°, 6 needs a turn to the right, 2 a reflection.
    "turned-3.png": (lambda p: turned(p, 3), RGB[::-1, ::-1]),
    "turned-6.png": (lambda p: turned(p, 6), np.rot90(RGB, -1)),
    "turned-2.png": (lambda p: turned(p, 2), RGB[:, ::-1]),
    "grey.png": (lambda p: Image.fromarray(GREY).save(p), np.dstack([GREY] * 3)),
    "grey-alpha.png": (lambda p: grey_alpha().save(p), over_white(np.dstack([GREY] * 3), ALPHA)),
}

REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep-rgb.png": (lambda p: cv2.imwrite(str(p), RGB.astype(np.uint16) * 257), "has 16 bits per channel; save it w"),
    "deep-grey.png": (lambda p: cv2.imwrite(str(p), GREY.astype(np.uint16)), "has 16 bits per channel"),
    "deep-rgba.png": (
        lambda p: cv2.imwrite(str(p), np.dstack([RGB, ALPHA]).astype(np.uint16) * 257),
        "has 16 bits per channel",
    ),
    "cmyk.jpg": (lambda p: Image.new("CMYK", (8, 8)).save(p), "has pixel mode CMYK; save it as RGB with 8 bits"),
    "bits.png": (lambda p: Image.new("1", (8, 8)).save(p), "has pixel mode 1; save it as RGB"),
    "cut.png": (lambda p: (Image.fromarray(RGB).save(p), p.write_bytes(p.read_bytes()[:900])), "cannot be decoded"),
    "cut.jpg": (lambda p: (Image.fromarray(RGB).save(p), p.write_bytes(p.read_bytes()[:-300])), "cannot be decoded"),
}


def as_slide(path: Path) -> np.ndarray:
    backend = open_backend(path)
    size = backend.sizes[0]
    return backend.read(0, Box(0, 0, size.h, size.w))


def as_pair(path: Path) -> np.ndarray:
    return read_pair(Pair(path, path.with_name(path.name), "", ""))[1]


def as_contender(path: Path) -> np.ndarray:
    pixels = np.zeros(np.asarray(decode(path).pixels).shape, np.uint8)
    return from_folder(path.parent, [path.stem]).answer(FieldPixels(path.stem, pixels, pixels))


@pytest.mark.parametrize("name", EXPECTED)
def test_every_form_of_pixels_is_the_same_for_slides_pairs_and_contenders(tmp_path: Path, name: str) -> None:
    write, expected = EXPECTED[name]
    write(path := tmp_path / name)
    pixels = decode(path).pixels
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - np.asarray(expected, float)).max() <= 0.5
    np.testing.assert_array_equal(as_pair(path), pixels)
    np.testing.assert_array_equal(as_contender(path), pixels)
    if name.endswith("png") and not name.startswith("grey"):
        np.testing.assert_array_equal(as_slide(path), pixels)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_faithfully_is_the_same_sentence_everywhere(tmp_path: Path, name: str) -> None:
    write, words = REFUSED[name]
    write(path := tmp_path / name)
    with pytest.raises(UnsupportedFormat, match=f"^{words}") as refusal:
        decode(path)
    assert str(tmp_path) not in str(refusal.value)
    sentence = re.escape(str(refusal.value))
    with pytest.raises(TrainingError, match=f"^{re.escape(str(path))} {sentence}, or remove the pair$"):
        as_pair(path)
    with pytest.raises(SlideError, match=f"^{name} {sentence}$"):
        as_slide(path)
    view = FieldPixels(path.stem, RGB, RGB)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))} {sentence}$"):
        from_folder(path.parent, [path.stem]).answer(view)


def test_a_deep_tiff_of_a_pair_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", RGB.astype(np.uint16) * 257, photometric="rgb")
    with pytest.raises(UnsupportedFormat, match="has 16 bits per channel"):
        decode(tmp_path / "deep.tif")
