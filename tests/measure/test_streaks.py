"""The streak figure of textures whose direction is known."""

import numpy as np
import pytest

from wsi_stain.measure.streaks import spectrum_sums, streaks


def texture(seed: int, side: int = 512) -> np.ndarray:
    """Noise without direction, softened as tissue is."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    noise = np.fft.rfft2(rng.normal(size=(side, side))) / (1 + (frequency * 30) ** 2)
    return np.fft.irfft2(noise, s=(side, side))


def figure(*images: np.ndarray) -> float:
    everywhere = np.ones(images[0].shape, bool)
    return float(streaks(sum(spectrum_sums(image, everywhere) for image in images)))


def test_a_texture_without_direction_has_none() -> None:
    figures = [figure(*(texture(seed) for seed in range(n))) for n in (1, 16)]
    assert 1 < figures[1] < figures[0] < 1.6, "what is left is chance, and less of it in more fields"
    assert figures[1] < 1.25


@pytest.mark.parametrize("direction", [(0, 1), (1, 0), (1, 1)], ids=str)
def test_weak_hatching_is_seen_in_any_direction(direction: tuple[int, int]) -> None:
    y, x = np.mgrid[:512, :512]
    plain = [texture(seed) for seed in range(8)]
    hatching = (
        0.1
        * plain[0].std()
        * sum(np.sin(2 * np.pi * (direction[0] * y + direction[1] * x) / period) for period in (4, 5.3, 8))
    )
    assert figure(*(image + hatching for image in plain)) > 1.5 * figure(*plain)


def test_an_anisotropic_texture_is_seen() -> None:
    plain = [texture(seed) for seed in range(8)]
    streaked = [(image + np.roll(image, 1, 0) + np.roll(image, 2, 0)) / 3 for image in plain]
    assert figure(*streaked) > 1.5 * figure(*plain)


def test_it_does_not_depend_on_contrast_or_on_a_turn() -> None:
    image = texture(0)
    assert figure(5 * image + 1) == pytest.approx(figure(image))
    assert figure(np.rot90(image)) == pytest.approx(figure(image), rel=0.02)


def test_windows_without_tissue_or_without_texture_do_not_count() -> None:
    image, tissue = texture(0), np.zeros((512, 512), bool)
    tissue[:256] = True
    assert spectrum_sums(image, tissue)[-1] == 32
    np.testing.assert_array_equal(spectrum_sums(image, tissue), spectrum_sums(image[:256], tissue[:256]))
    assert spectrum_sums(np.ones((512, 512)), ~tissue)[-1] == 0
    assert np.isnan(streaks(spectrum_sums(image, np.zeros_like(tissue))))
