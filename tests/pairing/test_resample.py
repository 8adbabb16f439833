"""Resampling in the frame of the H&E: the right pixels, the same in every box, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest
from builders.cases import ALL_ONE, shifted, write_scan
from builders.sections import made_pair
from builders.slides import ComputedBackend, hashed

from wsi_stain.geometry import Box, Size
from wsi_stain.pairing.resample import FURTHEST_PX, PART_PX, Warped, he_tile
from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import Deformation
from wsi_stain.registration.fragments import Fragments
from wsi_stain.registration.transform import Piece, Transform
from wsi_stain.slide.slide import Slide

SIDE = 40_000


def computed() -> tuple[ComputedBackend, Slide]:
    """A slide of 40 000 × 40 000 px of noise at 1 µm/px, none of it in memory."""
    backend = ComputedBackend([Size(SIDE, SIDE)], hashed, mpp=(1.0, 1.0))
    return backend, Slide(Path("computed.svs"), backend)


def stripes() -> Transform:
    """Columns of 64 px that belong in turn to two pieces, whose places lie 30 000 px apart."""
    labels = (np.arange(64, dtype=np.uint8) % 2)[None].repeat(64, axis=0)
    return Transform((shifted(3, 5), shifted(30_000, 30_000)), Fragments(labels, 64.0), {})


def test_far_pieces_are_read_one_by_one_in_bounded_memory() -> None:
    backend, slide = computed()
    box = Box(100, 130, 100 + 300, 130 + 300)
    pixels, inside = Warped(slide.at(1.0), stripes(), 1.0).read(box)
    assert inside.all()
    y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1]
    far = x // 64 % 2 == 1
    expected = hashed(
        0, (y + np.where(far, 30_000, 3)).astype(np.uint64), (x + np.where(far, 30_000, 5)).astype(np.uint64)
    )
    np.testing.assert_array_equal(pixels, expected)
    assert max(read.area for read in backend.boxes) <= (PART_PX + 2) ** 2
    assert len(backend.boxes) <= 2 * 4  # two pieces, four squares


def test_what_a_field_tears_apart_is_read_in_bounded_memory() -> None:
    backend, slide = computed()
    torn = np.zeros((2, 2, 2), np.float32)
    torn[:, 1, 1] = 20_000  # 20 mm further right, 256 µm further right
    transform = Transform((Piece(Affine.identity(), Deformation(torn, 256.0)),), ALL_ONE, {})
    _, inside = Warped(slide.at(1.0), transform, 1.0).read(Box(0, 0, 8, 512))
    assert inside.all()
    assert max(read.size.w for read in backend.boxes) <= FURTHEST_PX + 2


@pytest.mark.slow
@pytest.mark.parametrize("drifts", [False, True])
def test_a_pixel_is_the_same_in_every_box(drifts: bool) -> None:
    truth = made_pair().truth
    transform = Transform((truth, shifted(900.3, 700.7)), Fragments(np.array([[0, 1]], np.uint8), 2500.0), {})
    warped = Warped(computed()[1].at(8.0), transform, 8.0, drifts)
    whole, inside = warped.read(Box(200, 180, 520, 440))
    for box in (Box(200, 180, 201, 181), Box(333, 250, 400, 440), Box(470, 181, 520, 390)):
        part, is_in = warped.read(box)
        here = box.shift(-200, -180).slices()
        np.testing.assert_array_equal(part, whole[here])
        np.testing.assert_array_equal(is_in, inside[here])


def test_both_sides_of_a_tile_are_interpolated_at_the_same_places(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    with Slide.open(write_scan(tmp_path / "a.tif", noise, 1.0)) as slide:
        view, box = slide.at(1.0), Box(60, 90, 600, 640)
        he, identity = he_tile(view, box), Transform((shifted(0, 0),), ALL_ONE, {})
        np.testing.assert_array_equal(Warped(view, identity, 1.0, drifts=True).read(box)[0], he)
        np.testing.assert_array_equal(Warped(view, identity, 1.0).read(box)[0], view.read(box))
        assert (he != view.read(box)).mean() > 0.9
