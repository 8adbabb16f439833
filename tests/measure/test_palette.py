"""Stain vectors of drawn sections whose vectors are known."""

import numpy as np
import pytest
from builders.fields import BACKGROUND, VECTORS, stained

from wsi_stain.measure.palette import FLOOR_OD, Palette, estimate

BLUE, BROWN = np.array([0.70, 0.60, 0.39]), np.array([0.41, 0.57, 0.71])
"""Vectors unlike Ruifrok's."""


def section(blue: np.ndarray, brown: np.ndarray) -> np.ndarray:
    """Densities (h, w) of two stains as an image, with the noise of rounding only: uint8 (h, w, 3)."""
    unit = [v / np.linalg.norm(v) for v in (BLUE, BROWN)]
    density = blue[..., None] * unit[0] + brown[..., None] * unit[1]
    return np.rint(np.array(BACKGROUND) * 10**-density).astype(np.uint8)


def densities(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nuclei on the left, DAB on the right, and nothing between."""
    rng = np.random.default_rng(seed)
    blue, brown = np.zeros((96, 96)), np.zeros((96, 96))
    blue[:, :40], brown[:, 56:] = rng.uniform(0.2, 0.6, (96, 40)), rng.uniform(0.4, 1.0, (96, 40))
    return blue, brown


def test_vectors_are_those_that_painted_the_stain() -> None:
    stains = [section(*densities(seed)) for seed in range(2)]
    palette = estimate([(np.full_like(stain, 120), stain) for stain in stains], BACKGROUND)
    np.testing.assert_allclose(palette.hematoxylin, BLUE / np.linalg.norm(BLUE), atol=0.01)
    np.testing.assert_allclose(palette.dab, BROWN / np.linalg.norm(BROWN), atol=0.01)
    assert palette.background == BACKGROUND


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_strength_is_the_ratio_of_the_two_hematoxylins(ratio: float) -> None:
    """Both sides hold the same nuclei, painted by Ruifrok's vectors, which measure them without crosstalk."""
    nuclei = np.repeat(np.repeat(np.random.default_rng(0).uniform(0.3, 0.9, (8, 8)), 12, 0), 12, 1)
    he = np.rint(np.array(BACKGROUND) * 10 ** -((nuclei + FLOOR_OD)[..., None] * VECTORS[0])).astype(np.uint8)
    stain = np.rint(np.array(BACKGROUND) * 10 ** -((ratio * nuclei)[..., None] * VECTORS[0])).astype(np.uint8)
    assert estimate([(he, stain)], BACKGROUND).strength == pytest.approx(ratio, rel=0.05)


def test_a_stain_without_pixels_has_ruifroks_vector() -> None:
    blue, brown = densities(0)
    no_brown = estimate([(np.full((96, 96, 3), 120, np.uint8), section(blue, 0 * brown))], BACKGROUND)
    assert no_brown.dab == Palette().dab
    assert no_brown.hematoxylin != Palette().hematoxylin


def test_empty_slides_have_the_default_palette_and_their_own_background() -> None:
    empty = np.full((64, 64, 3), 240, np.uint8)
    assert estimate([(empty, empty)], (240, 240, 240)) == Palette((240, 240, 240))


def test_painted_pixels_agree_with_the_builder() -> None:
    """The floor is below the hematoxylin of a nucleus and above that of eosin."""
    from wsi_stain.measure.deconvolution import HE_BACKGROUND, stain_densities

    assert stain_densities(stained(0.3, 0.4, 0), HE_BACKGROUND)[0, 0, 0] > FLOOR_OD
    assert stain_densities(stained(0.0, 0.4, 0), HE_BACKGROUND)[0, 0, 0] < FLOOR_OD
