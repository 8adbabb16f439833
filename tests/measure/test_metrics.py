"""Figures against hand-computed values, other libraries, and naive twins."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from builders.fields import BACKGROUND, stained
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file
from scipy.spatial.distance import jensenshannon

from wsi_stain.errors import ConfigError
from wsi_stain.evaluate import fid
from wsi_stain.evaluate.fid import distances, inception
from wsi_stain.evaluate.figures import BINS, MOST_OD, histogram
from wsi_stain.evaluate.groups import FieldOrigin, group
from wsi_stain.measure.deconvolution import dab, hematoxylin, stain_densities, tissue
from wsi_stain.measure.metrics import (
    agreement,
    block_means,
    bootstrap,
    divergence,
    mean,
    mean_absolute_error,
    pair_sums,
    pearson,
    psnr,
    relative_entropy,
    ssim,
)


def similar_images() -> tuple[np.ndarray, np.ndarray]:
    """A smooth uint8 image and a noisy twin."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :52]
    smooth = 128 + 70 * np.sin(x / 7)[..., None] * np.cos(y / 5)[..., None] * np.array([1, 0.7, 0.4])
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return tuple(np.clip(np.rint(a), 0, 255).astype(np.uint8) for a in (smooth, noisy))  # type: ignore


@pytest.mark.parametrize("densities", [(0.3, 0, 0), (0, 0.4, 0), (0, 0, 0.5), (0.2, 0.1, 0.3)])
def test_densities_come_back_from_painted_pixels(densities: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(stain_densities(stained(*densities), BACKGROUND)[0, 0], densities, atol=0.015)


def test_background_holds_no_stain_and_no_tissue() -> None:
    background = np.full((40, 40, 3), 243, np.uint8)
    noise = np.random.default_rng(0).normal(0, 6, background.shape)
    assert dab(background, BACKGROUND).max() == 0
    assert not tissue(np.clip(background + noise, 0, 255).astype(np.uint8), mpp=1.0).any()


def test_tissue_is_found_where_it_was_painted() -> None:
    image = np.full((200, 200, 3), 243, np.uint8)
    image[:, 100:] = stained(0.1, 0.2, 0)
    actual = tissue(image, mpp=0.5)
    assert not actual[:, :80].any()
    assert actual[:, 110:].all()


def test_hematoxylin_is_smoothed_without_loss() -> None:
    image = np.tile(stained(0, 0, 0), (41, 41, 1))
    image[20, 20] = stained(0.5, 0, 0)
    blurred = hematoxylin(image, BACKGROUND, sigma_px=2.0)
    assert blurred.sum() == pytest.approx(0.5, abs=0.02)
    assert blurred.max() == pytest.approx(0.5 / (2 * np.pi * 2.0**2), rel=0.05)  # the peak of a Gaussian


def test_psnr_and_ssim_of_known_images() -> None:
    real = np.random.default_rng(0).integers(10, 240, (32, 32, 3), dtype=np.uint8)
    assert psnr(real + 5, real) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(real, real) == np.inf
    assert ssim(real, real) == 1.0
    assert ssim(255 - real, real) < 0.1


def test_psnr_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = similar_images()
    theirs = peak_signal_noise_ratio(*(torch.from_numpy(x).float() for x in (a, b)), data_range=255.0)
    assert psnr(a, b) == pytest.approx(float(theirs), abs=1e-4)


def test_ssim_is_the_mean_over_windows_of_its_formula() -> None:
    a, b = similar_images()
    x, y = (
        sliding_window_view(i.astype(float), (7, 7), axis=(0, 1)).reshape(*np.subtract(i.shape[:2], 6), 3, 49)
        for i in (a, b)
    )
    mx, my, vx, vy = x.mean(-1), y.mean(-1), x.var(-1, ddof=1), y.var(-1, ddof=1)
    covariance = ((x - mx[..., None]) * (y - my[..., None])).sum(-1) / 48
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(a, b) == pytest.approx(expected.mean(), abs=1e-9)


def test_ssim_is_that_of_torchmetrics_with_the_same_window() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = similar_images()
    tensors = [torch.from_numpy(x).permute(2, 0, 1)[None].double() for x in (a, b)]
    options = {"gaussian_kernel": False, "kernel_size": 7, "data_range": 255.0, "return_full_image": True}
    _, theirs = structural_similarity_index_measure(*tensors, **options)
    whole_windows = theirs[..., 3:-3, 3:-3].mean()
    assert ssim(a, b) == pytest.approx(float(whole_windows), abs=0.003)  # theirs divides variances by 49, not by 48


def test_block_means_are_means_of_whole_blocks() -> None:
    values = np.arange(20.0).reshape(4, 5)
    np.testing.assert_allclose(block_means(values, 2), [[3, 5], [13, 15]])


def test_pearson_and_error_of_added_sums_are_those_of_all_values() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(100, 1, 50)  # far from 0: the sums of squares nearly cancel
    b = 0.3 * a + rng.normal(0, 1, 50)
    total = sum(pair_sums(a[part], b[part]) for part in (slice(0, 7), slice(7, 40), slice(40, 50)))
    assert pearson(np.asarray(total)) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
    assert mean_absolute_error(np.asarray(total)) == pytest.approx(np.abs(a - b).mean())


@pytest.mark.parametrize("constant", [1.0, 0.1, 1e-9, 12345.678])
def test_pearson_is_undefined_for_a_constant(constant: float) -> None:
    a = np.array([1.0, 2, 4])
    assert pearson(pair_sums(a, 3 - 2 * a)) == pytest.approx(-1)
    assert np.isnan(pearson(pair_sums(a, np.full(3, constant))))
    assert np.isnan(pearson(pair_sums(np.full(3, constant), a)))


def test_figures_of_nothing_are_undefined() -> None:
    nothing = pair_sums(np.zeros(0), np.zeros(0))
    assert np.isnan(pearson(nothing))
    assert np.isnan(mean_absolute_error(nothing))
    assert np.isnan(mean(np.zeros(2)))
    assert np.isnan(divergence(np.zeros(8)))


def test_divergence_is_that_of_scipy_and_runs_from_equal_to_apart() -> None:
    p, q = np.array([5.0, 1, 0, 2]), np.array([1.0, 1, 6, 0])
    assert divergence(np.concatenate([p, q])) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert divergence(np.concatenate([p, 3 * p])) == pytest.approx(0)
    assert divergence(np.array([4.0, 0, 0, 9])) == pytest.approx(1)
    np.testing.assert_allclose(divergence(np.array([[4.0, 0, 0, 9], [1, 1, 2, 2]])), [1, 0], atol=1e-12)


def test_relative_entropy_is_that_of_scipy_with_one_more_in_each_bin() -> None:
    generated, real = np.array([30, 0, 70, 9]), np.array([10, 40, 0, 9])
    actual = relative_entropy(np.concatenate([generated, real]))
    assert actual == pytest.approx(scipy.stats.entropy(real + 1, generated + 1))
    assert relative_entropy(np.concatenate([real, real])) == 0
    assert np.isnan(relative_entropy(np.concatenate([real, 0 * real])))
    stacked = relative_entropy(np.stack([np.concatenate([generated, real]), np.concatenate([real, real])]))
    np.testing.assert_allclose(stacked, [actual, 0])


def test_histogram_counts_every_density_once() -> None:
    width = MOST_OD / BINS
    counts = histogram(np.array([0, width / 2, 1.5 * width, MOST_OD - width / 2, MOST_OD, 9], np.float32))
    assert counts[[0, 1, BINS - 1]].tolist() == [2, 1, 3]
    assert counts.sum() == 6


def test_agreement_is_bland_and_altmans() -> None:
    actual = agreement(np.array([1.0, 3, 5]), np.array([0.0, 3, 3]))  # differences 1, 0, 2: mean 1, deviation 1
    assert (actual.bias, actual.low, actual.high) == pytest.approx((1, 1 - 1.96, 1 + 1.96))
    assert np.isnan(agreement(np.ones(1), np.ones(1)).low)


def counted(values: np.ndarray) -> np.ndarray:
    """What `mean` needs of each value."""
    return np.stack([values, np.ones_like(values)], -1)


def test_bootstrap_resamples_groups_and_not_images() -> None:
    # 2 groups of 50 equal images: the mean of a resample is 0, ½ or 1; over images it would hardly leave ½.
    values, groups = np.repeat([0.0, 1.0], 50), ["a"] * 50 + ["b"] * 50
    estimate = bootstrap(counted(values), mean, groups)
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.5, 1.0)


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(size=400)
    estimate = bootstrap(counted(values), mean, [str(i) for i in range(400)])
    half = 1.96 * values.std() / 20
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.15)


def test_bootstrap_of_sums_is_the_naive_bootstrap_of_values() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random((12, 5)), rng.random((12, 5))
    groups = list("aabbbcddeeff")
    members = [[i for i, label in enumerate(groups) if label == one] for one in sorted(set(groups))]
    chosen = np.random.default_rng(0).integers(len(members), size=(200, len(members)))
    draws = []
    for row in chosen:
        some = [i for g in row for i in members[g]]
        draws.append(np.corrcoef(a[some].ravel(), b[some].ravel())[0, 1])
    actual = bootstrap(np.stack([pair_sums(x, y) for x, y in zip(a, b, strict=True)]), pearson, groups, rounds=200)
    low, high = np.percentile(draws, [2.5, 97.5], method="inverted_cdf")
    assert (actual.low, actual.high) == pytest.approx((low, high), abs=1e-9)


def test_infinite_values_stay_infinite_and_do_not_spoil_others() -> None:
    estimate = bootstrap(counted(np.array([np.inf, 20.0, 30.0])), mean, ["a", "b", "c"])
    assert estimate.value == np.inf
    assert estimate.low == 20.0  # resamples without the infinite one
    assert estimate.high == np.inf


def test_one_group_has_no_interval() -> None:
    estimate = bootstrap(counted(np.array([1.0, 3.0])), mean, ["only", "only"])
    assert estimate.value == 2.0
    assert np.isnan([estimate.low, estimate.high]).all()


def test_slides_are_the_groups_where_there_are_several() -> None:
    labels, unit = group(
        [FieldOrigin("1", "A", 0, 0), FieldOrigin("2", "A", 9000, 0), FieldOrigin("3", "B", 0, 0)], side=512
    )
    assert (labels, unit) == (["A", "A", "B"], "slide")


@pytest.mark.parametrize("pitch", [512, 2048])
def test_fields_of_one_slide_are_grouped_two_by_two(pitch: int) -> None:
    corners = [(1000 + pitch * i, 5000 + pitch * j) for i in range(5) for j in range(4)]
    labels, unit = group([FieldOrigin(f"{x}", "A", x, y) for x, y in corners], side=512)
    members = [{c for c, label in zip(corners, labels, strict=True) if label == one} for one in set(labels)]
    assert sorted(map(len, members)) == [2, 2, 4, 4, 4, 4]
    for some in members:
        assert all(np.ptp([c[axis] for c in some]) <= pitch for axis in (0, 1))
    assert unit.startswith("block of 2 × 2")


def test_a_single_column_of_fields_is_grouped_too() -> None:
    labels, _ = group([FieldOrigin(str(y), "A", 700, y) for y in (0, 2048, 4096, 6144)], side=512)
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_fields_without_a_known_place_stand_for_themselves() -> None:
    labels, unit = group([FieldOrigin("same", "", 0, 0), FieldOrigin("same", "", None, None)], side=512)
    assert len(set(labels)) == 2
    assert unit == "field"


def test_fid_is_the_frechet_distance_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(80, 4)), rng.normal(0.5, 1.4, size=(60, 4)) @ rng.normal(size=(4, 4))
    moved = real.mean(0) - generated.mean(0)
    covariances = [np.cov(x, rowvar=False) for x in (real, generated)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = moved @ moved + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert distances(generated, real)[0] == pytest.approx(expected, rel=1e-6)
    assert distances(real, real)[0] == pytest.approx(0, abs=1e-9)


def test_kid_is_the_unbiased_kernel_discrepancy() -> None:
    rng = np.random.default_rng(1)
    real, generated = rng.normal(size=(15, 3)), rng.normal(0.4, 1, size=(15, 3))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    n = range(15)
    within = [kernel(x[i], x[j]) / (15 * 14) for x in (real, generated) for i in n for j in n if i != j]
    across = [kernel(real[i], generated[j]) / 15**2 for i in n for j in n]
    assert distances(generated, real)[1] == pytest.approx(sum(within) - 2 * sum(across), abs=1e-9)


def test_kid_of_many_images_draws_the_same_subsets_and_leaves_the_global_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    real, generated = rng.normal(size=(240, 3)), rng.normal(0.4, 1, size=(290, 3))
    all_at_once = distances(generated[:240], real)[1]
    monkeypatch.setattr(fid, "SUBSET", 100)
    before = torch.random.get_rng_state()
    first = distances(generated, real)
    torch.manual_seed(5)
    assert distances(generated, real) == first
    torch.random.set_rng_state(before)
    distances(generated, real)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first[1] == pytest.approx(all_at_once, rel=0.2)


def test_one_image_has_no_distance() -> None:
    assert np.isnan(distances(np.ones((1, 3)), np.ones((5, 3)))).all()


def test_inception_needs_safetensors(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}q\x00.")  # a pickle: it must not be opened
    with pytest.raises(ConfigError, match="not a safetensors file"):
        inception(tmp_path / "weights.pth")


def test_without_torch_fidelity_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigError, match=r"pip install .wsi-stain\[fid\]"):
        inception(tmp_path / "w.safetensors")


def test_inception_gets_its_weights_from_safetensors(tmp_path: Path) -> None:
    try:
        import torch_fidelity  # noqa: F401
    except (ImportError, RuntimeError) as err:
        pytest.skip(f"torch-fidelity cannot be imported here: {err}")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:  # random weights: nothing may be downloaded
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, tensors: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (299, 299, 3), dtype=np.uint8)
    expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0][0]
    np.testing.assert_allclose(inception(tmp_path / "w.safetensors")(image), expected, rtol=1e-4, atol=1e-5)
