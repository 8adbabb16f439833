"""Figures against hand-computed values, and evaluation against models whose score is known."""

import numpy as np
import pytest

from wsi_stain.bundle import Bundle
from wsi_stain.eval.evaluate import evaluate, table
from wsi_stain.eval.metrics import block_means, bootstrap, mean_absolute_error, pearson, psnr, ssim
from wsi_stain.eval.stain import POSITIVE_OD, dab, stain_densities

GLASS = (243, 243, 243)


def stained(hematoxylin: float, eosin: float, brown: float) -> np.ndarray:
    """One pixel with known densities, by Beer–Lambert with Ruifrok's vectors."""
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    density = np.array([hematoxylin, eosin, brown]) @ vectors
    return np.rint(np.array(GLASS) * 10**-density).astype(np.uint8).reshape(1, 1, 3)


@pytest.mark.parametrize("densities", [(0.3, 0, 0), (0, 0.4, 0), (0, 0, 0.5), (0.2, 0.1, 0.3)])
def test_densities_come_back_from_painted_pixels(densities: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(stain_densities(stained(*densities), GLASS)[0, 0], densities, atol=0.015)


def test_glass_holds_no_stain() -> None:
    assert dab(np.full((2, 2, 3), 243, np.uint8), GLASS).max() == 0


def test_psnr_and_ssim_of_known_images() -> None:
    real = np.random.default_rng(0).integers(10, 240, (32, 32, 3), dtype=np.uint8)
    assert psnr(real + 5, real) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(real, real) == np.inf
    assert ssim(real, real) == 1.0
    assert ssim(255 - real, real) < 0.1


def test_block_means_are_means_of_whole_blocks() -> None:
    values = np.arange(20.0).reshape(4, 5)
    np.testing.assert_allclose(block_means(values, 2), [[3, 5], [13, 15]])


def test_pearson_is_undefined_for_a_constant() -> None:
    a = np.array([1.0, 2, 4])
    assert pearson(a, 3 - 2 * a) == pytest.approx(-1)
    assert np.isnan(pearson(a, np.ones(3)))
    assert mean_absolute_error(a, a + np.array([1, -1, 4])) == 2


def test_bootstrap_resamples_groups_and_not_images() -> None:
    # 2 groups of 50 equal images: the mean of a resample is 0, ½ or 1; over images it would hardly leave ½.
    values, groups = np.repeat([0.0, 1.0], 50), ["a"] * 50 + ["b"] * 50
    estimate = bootstrap(lambda chosen: float(values[list(chosen)].mean()), groups)
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.5, 1.0)


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(size=400)
    estimate = bootstrap(lambda chosen: float(values[list(chosen)].mean()), [str(i) for i in range(400)])
    half = 1.96 * values.std() / 20
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.15)


def test_identity_scores_as_the_he_itself_and_perfectly_where_he_is_the_stain() -> None:
    rng = np.random.default_rng(0)
    amount = np.kron(rng.random((4, 4)), np.ones((64, 64)))
    brown = np.concatenate([np.concatenate([stained(0.1, 0, x) for x in row], 1) for row in amount * 0.6])
    pink = np.concatenate([np.concatenate([stained(0.1, x, 0) for x in row], 1) for row in amount * 0.6])
    bundle, colour = Bundle.open("identity"), brown.mean((0, 1))
    fields, groups = [(brown, brown), (pink, brown)], ["a", "b"]
    perfect = evaluate(bundle, fields[:1], groups[:1], mean_colour=colour, device="cpu")
    assert perfect["identity"]["DAB+ r, 64 µm"].value == pytest.approx(1)
    assert perfect["identity"]["DAB+ error, 64 µm"].value == 0
    rows = evaluate(bundle, fields, groups, mean_colour=colour, device="cpu")
    assert str(rows["identity"]) == str(rows["the H&E itself"])  # as text: undefined figures are equal too
    positive = (dab(brown, GLASS) > POSITIVE_OD).mean()
    assert rows["identity"]["DAB+ error, field"].value == pytest.approx(positive / 2, abs=1e-3)
    assert np.isnan(rows["mean stain colour"]["DAB+ r, 128 µm"].value)
    assert "| mean stain colour |" in table(rows)
    assert "– |" in table(rows)
