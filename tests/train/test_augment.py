"""Augmentation: what each change does to colours, sizes and sharpness, and that none of it happens unasked."""

import io
from pathlib import Path

import numpy as np
import pytest
from builders.fields import stained
from builders.pairs import blobs, placed_pairs
from PIL import Image

from wsi_stain.config.train import AugmentConfig
from wsi_stain.errors import ConfigError
from wsi_stain.pairs.pair import find_pairs
from wsi_stain.train.augment import Change, draw_change, enlarged
from wsi_stain.train.crops import Crops


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return placed_pairs(tmp_path / "pairs")


def density(image: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(image, 1) / 255.0)


def chroma(image: np.ndarray) -> np.ndarray:
    od = density(image).reshape(-1, 3)
    return od - od.mean(1, keepdims=True)


def test_nothing_is_changed_by_default(pairs: Path) -> None:
    (tile,) = blobs(1, 64)
    change = draw_change(AugmentConfig(), np.random.default_rng(0))
    assert change == Change()
    assert change.applied(tile) is tile
    plain = Crops(tuple(find_pairs(pairs, "train")), side=96, seed=1)
    he, ihc = plain.batch(0, 6)
    np.testing.assert_array_equal(ihc, 255 - he)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_intensity_is_a_factor_of_optical_density(factor: float) -> None:
    pixel = stained(0.3, 0.2, 0.0)
    actual = Change(intensity=factor).applied(pixel)
    np.testing.assert_allclose(density(actual), factor * density(pixel), atol=0.01)


def test_hue_turns_colours_and_leaves_their_darkness() -> None:
    pixel = stained(0.5, 0.2, 0.0)
    actual = Change(hue=np.radians(30)).applied(pixel)
    before, after = chroma(pixel)[0], chroma(actual)[0]
    assert density(actual).mean() == pytest.approx(density(pixel).mean(), abs=0.01)
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(30, abs=2)
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=0.05)


def test_saturation_scales_the_distance_from_grey() -> None:
    pixel = stained(0.5, 0.2, 0.0)
    np.testing.assert_allclose(chroma(Change(saturation=0.5).applied(pixel)), chroma(pixel) / 2, atol=0.01)


def test_grey_and_white_have_no_hue() -> None:
    for level in (60, 200, 255):
        grey = np.full((4, 4, 3), level, np.uint8)
        np.testing.assert_array_equal(Change(hue=1.0, saturation=1.4).applied(grey), grey)


def test_blur_and_compression_are_those_of_their_names() -> None:
    (tile,) = blobs(1, 64)
    edges = [np.abs(np.diff(Change(blur_px=s).applied(tile).astype(float), axis=1)).mean() for s in (0, 0.7, 1.5)]
    assert edges[0] > edges[1] > edges[2]
    flat = np.full_like(tile, 90)
    np.testing.assert_array_equal(Change(blur_px=2.0).applied(flat), flat)
    errors = [np.abs(Change(jpeg=q).applied(tile).astype(int) - tile).mean() for q in (30, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0
    target = io.BytesIO()
    Image.fromarray(tile).save(target, "JPEG", quality=95)  # the same colours, not blue for red
    assert np.abs(Change(jpeg=95).applied(tile).astype(int) - np.asarray(Image.open(target))).mean() < 3


def test_a_coarser_slide_loses_what_is_finer_than_its_pixels() -> None:
    (tile,) = blobs(1, 64)
    np.testing.assert_array_equal(enlarged(np.full((64, 48, 3), 77, np.uint8), 2.2), 77)
    checks = (np.indices((32, 32)).sum(0) % 2 * 200)[..., None].repeat(3, 2).astype(np.uint8)
    assert np.ptp(Change(coarser=2.0).applied(checks)) == 0, "1 px is finer than 2 px"
    smooth = Change(coarser=2.0).applied(tile)
    assert smooth.shape == tile.shape
    assert np.abs(np.diff(smooth.astype(int), axis=0)).mean() < 0.8 * np.abs(np.diff(tile.astype(int), axis=0)).mean()


def test_size_changes_both_stains_alike(pairs: Path) -> None:
    crops = Crops(tuple(find_pairs(pairs, "train")), side=96, seed=1, augment=AugmentConfig(scale=0.3))
    he, ihc = crops.batch(0, 12)
    assert he.shape == ihc.shape == (12, 96, 96, 3)
    assert np.abs(ihc.astype(int) - (255 - he)).max() <= 1
    steps = [np.abs(np.diff(image[..., :2].astype(float), axis=i)).max(2).mean() for image in he for i in (0, 1)]
    assert min(steps) < 0.85, "a pixel of an enlarged crop is a smaller step on the slide"
    assert max(steps) > 1.15


def test_a_crop_depends_on_its_number_alone(pairs: Path) -> None:
    every = AugmentConfig(hue=20, saturation=0.3, intensity=0.5, scale=0.2, blur=1, jpeg=50, coarser=2.2)
    crops = Crops(tuple(find_pairs(pairs, "train")), side=96, seed=1, augment=every)
    np.testing.assert_array_equal(crops.batch(0, 8)[0][5], crops.batch(5, 1)[0][0])


def test_changes_cover_their_ranges_and_no_more() -> None:
    every = AugmentConfig(hue=20, saturation=0.3, intensity=0.5, scale=0.2, blur=1, jpeg=50, coarser=2.2)
    rng = np.random.default_rng(0)
    changes = [draw_change(every, rng) for _ in range(300)]
    for values, low, high in (
        ([np.degrees(c.hue) for c in changes], -20, 20),
        ([c.saturation for c in changes], 0.7, 1.3),
        ([c.intensity for c in changes], 1 / 1.5, 1.5),
        ([c.scale for c in changes], 0.8, 1.2),
        ([c.blur_px for c in changes], 0, 1),
        ([c.coarser for c in changes], 1, 2.2),
        ([c.jpeg for c in changes if c.jpeg is not None], 50, 95),
    ):
        margin = 0.05 * (high - low)
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high
    assert 100 < sum(c.jpeg is None for c in changes) < 200


@pytest.mark.parametrize(
    "settings", [{"hue": -1.0}, {"saturation": 1.5}, {"intensity": -0.1}, {"scale": 0.9}, {"blur": -1.0}, {"jpeg": 99}]
)
def test_a_range_that_cannot_be_is_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(settings))} is .*: it must be (finite and )?between 0 and"):
        AugmentConfig(**settings)
