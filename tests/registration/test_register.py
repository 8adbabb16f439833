"""Registration against warps that are known, and slides that do not belong together."""

import numpy as np
import pytest
from builders.sections import UM, MadePair, made_pair, section

from wsi_stain.registration.register import register
from wsi_stain.registration.residuals import residuals
from wsi_stain.registration.transform import Transform


def errors_px(pair: MadePair, transform: Transform) -> np.ndarray:
    """Errors at the tissue of the H&E whose counterpart exists, in px of the working scale."""
    points = (np.argwhere(pair.he.tissue)[::97] + 0.5) * UM
    target = pair.truth(points)
    y, x = (target / UM).astype(int).clip(0, len(pair.ihc.tissue) - 1).T
    exists = pair.ihc.tissue[y, x]
    return np.linalg.norm(transform(points[exists]) - target[exists], axis=1) / UM


@pytest.mark.parametrize(("degrees", "mirrored"), [(140.0, False), pytest.param(-77.0, True, marks=pytest.mark.slow)])
def test_a_restained_section_is_found_to_a_pixel_whatever_its_rotation(degrees: float, mirrored: bool) -> None:
    pair = made_pair(degrees=degrees, mirrored=mirrored)
    result = register(pair.he, pair.ihc)
    errors = errors_px(pair, Transform(result.pieces, result.fragments, {}))
    assert result.verdict.word == "register"
    assert result.pieces[0].affine.is_mirrored == mirrored
    assert np.median(errors) <= 1
    assert np.percentile(errors, 95) <= 3
    assert all(piece.field.jacobian.min() > 0 for piece in result.pieces)


@pytest.mark.slow
def test_the_residuals_see_what_is_off() -> None:
    pair = made_pair(bend_um=0.0)
    result = register(pair.he, pair.ihc)
    good = residuals(pair.he, pair.ihc, Transform(result.pieces, result.fragments, {}))
    bad = residuals(section(7), pair.ihc, Transform(result.pieces, result.fragments, {}))
    assert good.holds.mean() > 0.9
    assert np.median(good.off_um) < UM
    assert bad.holds.mean() < 0.2


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 4))])
def test_sections_of_the_same_outline_and_other_tissue_are_refused(seed: int) -> None:
    pair, other = made_pair(seed), section(seed + 50)
    stranger = type(other)(np.where(pair.he.tissue, other.density, 0), pair.he.tissue, UM)
    assert register(stranger, pair.ihc).verdict.word == "refuse"
