"""Two slides of different scale, read from files: the transform is that of the warp, whatever their pixel sizes."""

from pathlib import Path

import numpy as np
import pytest
from builders.cases import write_scan
from builders.sections import UM, made_pair, rgb

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import stages
from wsi_stain.registration.images import Picture, picture, working_um
from wsi_stain.registration.refine import matched
from wsi_stain.registration.register import register
from wsi_stain.registration.transform import Transform
from wsi_stain.slide.slide import Slide

SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ihc_um", "degrees", "mirrored"),
    [
        (6.0, -77.0, True),
        pytest.param(9.0, 140.0, False, marks=SLOW),
        pytest.param(5.27, 201.0, True, marks=SLOW),
        pytest.param(2.9, 33.0, False, marks=SLOW),
    ],
)
def test_a_section_at_another_scale_is_found_to_a_pixel(
    tmp_path: Path, ihc_um: float, degrees: float, mirrored: bool
) -> None:
    pair = made_pair(degrees=degrees, mirrored=mirrored, ihc_um=ihc_um)
    with (
        Slide.open(write_scan(tmp_path / "he.tif", rgb(pair.he), UM)) as he,
        Slide.open(write_scan(tmp_path / "ihc.tif", rgb(pair.ihc), ihc_um)) as ihc,
    ):
        um = working_um(he, ihc)
        result = register(picture(he, um), picture(ihc, um))
    points = (np.argwhere(pair.he.tissue)[::97] + 0.5) * UM
    target = pair.truth(points)
    y, x = (target / ihc_um).astype(int).clip(0, len(pair.ihc.tissue) - 1).T
    exists = pair.ihc.tissue[y, x]
    moved = Transform(result.pieces, result.fragments, {})(points)
    errors = np.linalg.norm(moved - target, axis=1)[exists] / um
    assert result.verdict.word == "register"
    assert result.pieces[0].affine.is_mirrored == mirrored
    assert np.median(errors) <= 1
    assert np.percentile(errors, 95) <= 3


@pytest.mark.parametrize("um", [3.99, 4.0, 5.0, 16 / 3, 6.0, 7.9992, 8.0, 8.0016, 9.0, 11.3, 16.0])
def test_the_field_is_searched_from_coarse_to_the_scale_of_the_pictures(um: float) -> None:
    factors = list(stages(um))
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == 1
    assert all(0.5 < factor * um / stage.um < 2 for factor, stage in stages(um).items())


def test_both_pictures_are_reduced_alike_where_8_um_is_one_and_a_half_of_their_pixels() -> None:
    noise = np.random.default_rng(0).random((400, 400), np.float32)
    fixed, moving = (Picture(noise, np.ones_like(noise, bool), um) for um in (5.330, 5.337))
    assert fixed.at(8.0).um > 1.9 * moving.at(8.0).um  # each by itself
    for um in (8.0, 5.330):
        result = matched(fixed, moving, Affine(np.eye(2, 3) * (5.337 / 5.330)), um)
        assert result.scores.max((1, 2)).min() > 0.95
