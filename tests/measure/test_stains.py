import numpy as np
import pytest
from builders.hdab import paint, patchwork
from skimage.color import hed_from_rgb, separate_stains

from wsi_stain.measure.palette import RUIFROK_DAB, RUIFROK_HEMATOXYLIN, unit_vector
from wsi_stain.measure.stains import BINS, Stains, background_of, bins_of, estimate, percentile

BROWN, BLUE = unit_vector(np.array([0.40, 0.58, 0.71])), unit_vector(np.array([0.68, 0.62, 0.40]))


def test_densities_are_those_of_scikit_image() -> None:
    image = np.random.default_rng(0).integers(1, 256, (40, 60, 3), dtype=np.uint8)
    hematoxylin, dab = Stains((255, 255, 255)).densities(image)
    # scikit-image divides by log(1e-6), so its unit is 6 OD
    theirs = 6 * separate_stains(image, hed_from_rgb)
    np.testing.assert_allclose(hematoxylin, theirs[..., 0], atol=1e-3)
    np.testing.assert_allclose(dab, theirs[..., 2], atol=1e-3)


@pytest.mark.parametrize("third", [None, (0.1, 0.99, 0.1)])
def test_painted_densities_are_found_again(third) -> None:
    blue, brown = patchwork(96, 128)
    image = paint(blue, brown, background=(238, 241, 235), vectors=(BLUE, BROWN))
    hematoxylin, dab = Stains((238, 241, 235), BLUE, BROWN, third).densities(image)
    np.testing.assert_allclose(hematoxylin, blue, atol=0.03)  # grey levels are rounded: 0.02 OD in the dark
    np.testing.assert_allclose(dab, brown, atol=0.03)
    assert abs(dab.mean() - brown.mean()) < 1e-3


def test_what_is_brighter_than_the_background_has_no_density() -> None:
    hematoxylin, dab = Stains((200, 200, 200)).densities(np.full((2, 2, 3), 250, np.uint8))
    assert not hematoxylin.any()
    assert not dab.any()


def test_vectors_are_estimated_from_pure_pixels() -> None:
    rng = np.random.default_rng(1)
    blue = np.concatenate([rng.uniform(0.3, 0.8, 3000), np.zeros(3000), rng.uniform(0, 0.5, 500)])[None]
    brown = np.concatenate([np.zeros(3000), rng.uniform(0.6, 1.2, 3000), rng.uniform(0, 0.5, 500)])[None]
    image = paint(blue, brown, vectors=(BLUE, BROWN))
    stains, source = estimate(image.reshape(-1, 3), (240, 240, 240))
    np.testing.assert_allclose(stains.hematoxylin, BLUE, atol=0.02)
    np.testing.assert_allclose(stains.dab, BROWN, atol=0.02)
    assert source == {"hematoxylin": "estimated", "dab": "estimated"}


def test_a_stain_that_is_not_there_has_ruifroks_vector_and_it_is_stated() -> None:
    blue = np.random.default_rng(2).uniform(0.3, 0.8, (1, 3000))
    stains, source = estimate(paint(blue, 0 * blue).reshape(-1, 3), (240, 240, 240))
    assert stains.dab == RUIFROK_DAB
    assert source["hematoxylin"] == "estimated"
    assert "too few" in source["dab"]
    np.testing.assert_allclose(stains.hematoxylin, RUIFROK_HEMATOXYLIN, atol=0.02)


def test_percentiles_of_histograms_are_exact_to_a_bin() -> None:
    values = np.random.default_rng(3).gamma(2, 0.1, (3, 5000)).astype(np.float32)
    histograms = np.stack([np.bincount(bins_of(v), minlength=BINS) for v in values])
    np.testing.assert_allclose(percentile(histograms, 90), np.percentile(values, 90, axis=1), atol=1e-3)
    assert np.isnan(percentile(np.zeros((1, BINS), int), 90)).all()


def test_the_background_is_the_bright_grey_not_the_white_of_a_stitcher() -> None:
    picture = np.full((100, 100, 3), 255, np.uint8)
    picture[:50] = (238, 236, 240)
    picture[:20, :20] = (120, 80, 60)
    assert background_of(picture) == (238, 236, 240)
    assert background_of(np.full((50, 50, 3), 255, np.uint8)) == (255, 255, 255)
    assert background_of(np.full((50, 50, 3), (120, 80, 60), np.uint8)) is None
