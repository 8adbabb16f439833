"""The stain head: Beer–Lambert with known densities, background, and what the H&E alone decides."""

import numpy as np
import pytest
import torch
from builders.fields import VECTORS, stained
from torch import Tensor

from wsi_stain.config.model import GeneratorConfig
from wsi_stain.measure.deconvolution import HE_BACKGROUND, hematoxylin, stain_densities
from wsi_stain.measure.palette import FLOOR_OD, Palette
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.pixels import to_levels, to_pixels, to_tensor
from wsi_stain.nn.stain_head import CHANNELS, DAB_SCALE, StainHead, softplus

BACKGROUND = (247, 246, 245)
PALETTE = Palette(BACKGROUND, (0.65, 0.70, 0.29), (0.27, 0.57, 0.78), 0.5)


def flat(pixel: np.ndarray, side: int = 16) -> np.ndarray:
    """uint8 (1, side, side, 3) of one colour."""
    return np.tile(pixel.reshape(1, 1, 1, 3), (1, side, side, 1)).astype(np.uint8)


def predictions(dab: float = 0.0, gain: float = 0.0, side: int = 16) -> Tensor:
    """Raw values that give this DAB density, this tanh of the gain, and no residual."""
    raw = torch.zeros(1, CHANNELS, side, side)
    raw[:, 0] = torch.log(torch.expm1(torch.tensor(dab / DAB_SCALE))) if dab else -100.0
    raw[:, 1] = gain
    return raw


@pytest.mark.parametrize("dab", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("blue", [0.0, 0.3, 0.8])
def test_the_image_is_beer_lambert_of_known_densities(blue: float, dab: float) -> None:
    he = flat(stained(blue, 0.3, 0.0))  # hematoxylin and eosin, by the builder's own formula
    actual = to_pixels(StainHead(PALETTE)(predictions(dab), to_tensor(he)))[0, 8, 8]
    own = stain_densities(he[0], HE_BACKGROUND)[0, 0, 0]  # what the rounded pixel holds
    assert own == pytest.approx(blue, abs=0.03)
    density = 0.5 * max(own - FLOOR_OD, 0) * VECTORS[0] + dab * VECTORS[2]
    np.testing.assert_allclose(actual, np.array(BACKGROUND) * 10**-density, atol=0.51)


def test_background_is_the_palettes_whatever_is_predicted() -> None:
    he = np.random.default_rng(0).integers(236, 256, (1, 24, 24, 3)).astype(np.uint8)
    raw = 10 * torch.randn(1, CHANNELS, 24, 24, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(
        to_pixels(StainHead(PALETTE)(raw, to_tensor(he)))[0], np.tile(BACKGROUND, (24, 24, 1))
    )


def test_no_prediction_moves_or_removes_a_nucleus() -> None:
    he = flat(stained(0.05, 0.3, 0.0), 48)
    he[0, 20:28, 12:20] = stained(0.9, 0.1, 0.0)
    head, generator = StainHead(PALETTE), torch.Generator().manual_seed(0)
    for _ in range(5):
        raw = 5 * torch.randn(1, CHANNELS, 1, 1, generator=generator).expand(-1, -1, 48, 48)
        blue = hematoxylin(to_pixels(head(raw, to_tensor(he)))[0], BACKGROUND, sigma_px=1)
        outside = np.delete(blue, np.s_[18:30], axis=0)
        assert blue[22:26, 14:18].min() > outside.max() + 0.02


def test_levels_and_the_networks_range_are_the_same_input() -> None:
    he = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    raw = torch.randn(1, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    head = StainHead(PALETTE)
    expected = head(raw, to_tensor(he))
    head.read_levels()
    torch.testing.assert_close(head(raw, to_levels(torch.from_numpy(he), torch.bfloat16)), expected, atol=1e-5, rtol=0)


def test_densities_are_float32_whatever_the_network_is() -> None:
    he = np.full((1, 16, 16, 3), 100, np.uint8)
    raw = torch.randn(1, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    head = StainHead(PALETTE)
    assert torch.equal(head(raw, to_tensor(he).bfloat16()), head(raw.float(), to_tensor(he).bfloat16().float()))


def test_softplus_is_torchs() -> None:
    x = torch.linspace(-30, 15, 1001, dtype=torch.float64)
    torch.testing.assert_close(softplus(x), torch.nn.functional.softplus(x, threshold=50))


def test_gradients_reach_every_prediction_on_tissue() -> None:
    raw = torch.zeros(1, CHANNELS, 16, 16, requires_grad=True)
    StainHead(PALETTE)(raw, to_tensor(flat(stained(0.5, 0.3, 0.0)))).sum().backward()
    assert raw.grad is not None
    assert (raw.grad.abs() > 0).all()


def test_the_palette_is_kept_with_the_weights() -> None:
    config = GeneratorConfig(channels=4, blocks=4, head="stain")
    trained, loaded = Generator(config), Generator(config)
    assert trained.head is not None
    trained.head.use(PALETTE, counterstain=1.5)
    loaded.load_state_dict(trained.state_dict())
    assert loaded.head is not None
    assert loaded.head.get_buffer("strength").item() == pytest.approx(0.75)
    np.testing.assert_allclose(loaded.head.get_buffer("background"), BACKGROUND)
    np.testing.assert_allclose(loaded.head.get_buffer("dab"), VECTORS[2], atol=1e-6)


def test_the_papers_head_has_no_palette() -> None:
    keys = Generator(GeneratorConfig(channels=4, blocks=4)).state_dict()
    assert not [key for key in keys if key.startswith("head.")]
