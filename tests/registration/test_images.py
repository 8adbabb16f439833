"""Pictures of slides lie where level 0 does, however the levels of the file were made."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from builders.cases import write_scan

from wsi_stain.registration.images import picture
from wsi_stain.slide.slide import Slide


def noise(h: int, w: int) -> np.ndarray:
    """Soft spots of about 20 px: uint8 (h, w, 3)."""
    values = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((h, w)).astype(np.float32), (0, 0), 10.0)
    return np.repeat(np.clip(150 + 40 * values / values.std(), 0, 240).astype(np.uint8)[..., None], 3, 2)


def write_resized(path: Path, pixels: np.ndarray) -> Path:
    """A pyramid of which each level is the one before, resized to half its size, rounded up."""
    options = {"photometric": "rgb", "tile": (256, 256), "resolution": (10000, 10000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level in range(4):
            file.write(pixels, subfiletype=int(level > 0), **options)  # type: ignore[arg-type]
            h, w = (-(-n // 2) for n in pixels.shape[:2])
            pixels = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
    return path


@pytest.mark.parametrize(("h", "w"), [(1801, 2049), (2049, 2001)])
def test_resized_levels_do_not_move_a_picture(tmp_path: Path, h: int, w: int) -> None:
    pixels = noise(h, w)
    pictures = []
    for path in (write_scan(tmp_path / "plain.tif", pixels, 1.0), write_resized(tmp_path / "resized.tif", pixels)):
        with Slide.open(path) as slide:
            pictures.append(picture(slide, 8.0))
    ours, theirs = (p.density for p in pictures)
    assert ours.shape == theirs.shape
    for corner in (np.s_[:100, :100], np.s_[-100:, -100:], np.s_[-100:, :100]):
        one, other = (np.ascontiguousarray(d[corner]) for d in (ours, theirs))
        window = cv2.createHanningWindow((100, 100), cv2.CV_32F)
        shift, _ = cv2.phaseCorrelate(one - one.mean(), other - other.mean(), window)
        assert np.abs(shift).max() < 0.3, "in px of 8 µm"
