"""Fluorescence and dark field saved as RGB are refused; every brightfield slide passes."""

import cv2
import numpy as np
import pytest
from builders.conversions import noise, write_slide
from builders.slides import damage, tissue

from wsi_stain import phantom
from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.brightfield import check_brightfield, is_brightfield
from wsi_stain.slide.slide import Slide

SIDE = 700
BLUE, GREEN, RED, WHITE = (40, 60, 230), (30, 220, 60), (240, 40, 40), (230, 230, 230)


def shining(*colours: tuple[int, int, int], cells: int = 150, floor: int = 12) -> np.ndarray:
    """Soft shining cells on a dark, noisy background: uint8 (h, w, 3)."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    for n in range(cells):
        centre = tuple(int(v) for v in rng.integers(SIDE, size=2))
        cv2.circle(pixels, centre, int(rng.integers(8, 25)), colours[n % len(colours)], -1)
    return np.clip(
        cv2.GaussianBlur(pixels, (0, 0), 3).astype(int) + rng.integers(0, floor, pixels.shape), 0, 255
    ).astype(np.uint8)


def section() -> np.ndarray:
    size = Size(SIDE, SIDE)
    return phantom.render(Box.of(size), size=size, mpp=8.0, seed=1)


DARK_FIELD = {
    "one colour": shining(BLUE),
    "composite": shining(BLUE, GREEN, RED),
    "grey": shining(WHITE),
    "few cells": shining(GREEN, cells=3),
    "crowded": shining(BLUE, GREEN, RED, cells=700),
    "lifted black": shining(BLUE, GREEN, floor=60),
    "dim": shining((20, 30, 90), cells=900, floor=40),
    "negative": 255 - section(),
    "black": np.zeros((SIDE, SIDE, 3), np.uint8),
}


@pytest.mark.parametrize("name", DARK_FIELD)
def test_a_slide_that_shines_on_black_is_refused(tmp_path, name):
    with (
        Slide.open(write_slide(tmp_path / "s.tif", DARK_FIELD[name])) as slide,
        pytest.raises(SlideError, match=r"s\.tif has no bright background.*--force-brightfield"),
    ):
        check_brightfield(slide)


def surrounded() -> np.ndarray:
    pixels = section()
    pixels[:, : SIDE // 3] = 0
    pixels[SIDE // 2 :] = 0
    return pixels


BRIGHTFIELD = {
    "section": section(),
    "background": np.full((SIDE, SIDE, 3), 243, np.uint8),
    "white": np.full((SIDE, SIDE, 3), 255, np.uint8),
    "tissue without glass": tissue(SIDE, SIDE),
    "overstained": (section() * 0.6).astype(np.uint8),
    "black around the scan": surrounded(),
    "noise": noise(SIDE, SIDE),
    "yellow lamp": (section() * np.array([1, 0.95, 0.8])).astype(np.uint8),
}


@pytest.mark.parametrize("name", BRIGHTFIELD)
def test_a_brightfield_slide_passes(tmp_path, name):
    with Slide.open(write_slide(tmp_path / "s.tif", BRIGHTFIELD[name])) as slide:
        check_brightfield(slide)


def test_a_large_flat_slide_is_sampled_and_damage_left_out(tmp_path):
    dark = np.zeros((2100, 2300, 3), np.uint8)
    dark[100:400] = 30
    path = write_slide(tmp_path / "s.tif", dark)
    damage(path, 10)
    with Slide.open(path) as slide:
        read = []
        backend = slide._backend
        whole = backend.read
        backend.read = lambda level, box: read.append(box.area) or whole(level, box)
        with pytest.raises(SlideError, match="no bright background"):
            check_brightfield(slide)
    assert sum(read) < 0.1 * dark[..., 0].size


def test_nothing_readable_is_not_judged():
    assert is_brightfield(np.empty((0, 3), np.uint8))
