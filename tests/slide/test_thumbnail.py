"""Thumbnails survive damage: a finer level stands in, and what all levels have lost is white."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from builders.slides import ComputedBackend, damage, tissue, write_svs
from builders.tiffs import write_pyramid

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers.base import DecodeError
from wsi_stain.slide.slide import Slide

PIXELS = tissue(1024, 1024)
LEVELS = [PIXELS, PIXELS.reshape(256, 4, 256, 4, 3).mean((1, 3)).round().astype(np.uint8)]


def test_a_damaged_tile_of_the_coarse_level_is_taken_from_the_fine_one(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", LEVELS)
    with Slide.open(path) as slide:
        expected = slide.thumbnail(256).astype(int)
    damage(path, 1, page=1)
    with Slide.open(path) as slide:
        assert np.abs(slide.thumbnail(256) - expected).max() <= 1


def test_what_every_level_has_lost_is_white_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_svs(tmp_path / "a.svs", PIXELS)
    with Slide.open(path) as slide:
        expected = slide.thumbnail(256)
    damage(path, 9, page=0)  # row 1, column 1: px 32–64 of the thumbnail
    damage(path, 0, page=2)
    with caplog.at_level(logging.WARNING), Slide.open(path) as slide:
        thumbnail = slide.thumbnail(256)
    assert (thumbnail[32:64, 32:64] == 255).all()
    outside = np.ones((256, 256), bool)
    outside[24:72, 24:72] = False
    assert np.abs(thumbnail.astype(int) - expected)[outside].mean() < 3
    assert "1.6 % of the slide cannot be decoded; the overview shows it white" in caplog.text


def test_a_slide_without_a_readable_pixel_ends_soon() -> None:
    calls = []

    def broken(level: int, box: Box) -> np.ndarray:
        calls.append(box)
        raise DecodeError("damaged")

    slide = Slide(Path("a.svs"), ComputedBackend([Size(9000, 9000), Size(2250, 2250), Size(560, 560)], lambda *_: None))
    slide._backend.read = broken
    assert (slide.thumbnail(512) == 255).all()
    assert len(calls) < 12_000


def test_a_closed_slide_has_no_thumbnail(tmp_path: Path) -> None:
    slide = Slide.open(write_svs(tmp_path / "a.svs", PIXELS))
    slide.close()
    with pytest.raises(SlideError, match="is closed"):
        slide.thumbnail(64)
