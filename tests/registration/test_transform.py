"""Transforms: round trips, files, and the maps that they are made of."""

from pathlib import Path

import numpy as np
import pytest
from builders.sections import made_pair

from wsi_stain.errors import OutputError
from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import Deformation, unfolded
from wsi_stain.registration.fragments import Fragments
from wsi_stain.registration.transform import Piece, Transform

POINTS = np.random.default_rng(0).uniform(500, 4500, (200, 2))


def transform() -> Transform:
    halves = Fragments(np.array([[0, 1], [0, 1]], np.uint8), 2560.0)
    shifted = Piece(Affine(np.array([[1, 0, 9000.0], [0, 1, 50.0]])), Deformation.still())
    return Transform((made_pair().truth, shifted), halves, {"he": {"name": "a.svs"}})


def test_a_turn_is_clockwise_and_reports_its_angle() -> None:
    turned = Affine.turned(90, mirrored=False, about=np.zeros(2), to=np.zeros(2))
    np.testing.assert_allclose(turned(np.array([0.0, 1.0])), [1.0, 0.0], atol=1e-12)  # what was right is below
    for mirrored in (False, True):
        affine = Affine.turned(37, mirrored=mirrored, about=np.ones(2), to=np.zeros(2))
        assert affine.is_mirrored == mirrored
        assert affine.angle == pytest.approx(37)


@pytest.mark.slow
def test_the_inverse_brings_points_back() -> None:
    both = transform()
    np.testing.assert_allclose(both.inverse(both(POINTS)), POINTS, atol=0.01)


@pytest.mark.slow
def test_a_saved_transform_maps_alike_and_saves_to_the_same_bytes(tmp_path: Path) -> None:
    before = transform()
    before.save(tmp_path / "a.npz")
    after = Transform.load(tmp_path / "a.npz")
    after.save(tmp_path / "b.npz")
    np.testing.assert_array_equal(after(POINTS), before(POINTS))
    assert after.slides == before.slides
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK nonsense"])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(OutputError, match=r"a\.npz cannot be read"):
        Transform.load(tmp_path / "a.npz")


def test_a_field_that_folds_is_smoothed_until_it_does_not() -> None:
    values = np.random.default_rng(1).normal(0, 40, (30, 30, 2)).astype(np.float32)
    folded = Deformation(values, 32.0)
    assert folded.jacobian.min() < 0
    assert unfolded(folded).jacobian.min() > 0
