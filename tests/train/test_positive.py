"""The DAB-positive share as something to learn: the truth is evaluation's own, and misalignment costs little."""

import numpy as np
import pytest
import torch

from wsi_stain.measure.deconvolution import POSITIVE_OD, dab
from wsi_stain.nn.pixels import to_tensor
from wsi_stain.train.positive import BLOCKS_PX, positive, share_loss

BACKGROUND = (247, 246, 240)


def browns(n: int = 64) -> np.ndarray:
    """Browns of every density, uint8 (1, n, n, 3): uniform colours are hardly ever near the threshold."""
    density = np.random.default_rng(0).random((1, n, n, 1)) * 0.5 * np.array([0.27, 0.57, 0.78])
    return np.rint(np.array(BACKGROUND) * 10**-density).astype(np.uint8)


def test_the_target_is_the_positive_map_of_the_evaluation_bit_for_bit() -> None:
    images = np.concatenate([np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8), browns()])
    expected = np.stack([dab(image, BACKGROUND) > POSITIVE_OD for image in images])
    actual = positive(to_tensor(images), BACKGROUND)
    assert actual.dtype == torch.float32
    np.testing.assert_array_equal(actual[:, 0].numpy(), expected)
    assert 0.1 < expected[-1].mean() < 0.9


def test_the_loss_is_cross_entropy_of_shares_of_blocks() -> None:
    torch.manual_seed(0)
    probability, target = torch.rand(2, 1, 128, 256), (torch.rand(2, 1, 128, 256) < 0.3).float()
    expected = []
    for side in BLOCKS_PX:
        entropies = []
        for n in range(2):
            for y in range(0, 128, side):
                for x in range(0, 256, side):
                    block = (n, 0, slice(y, y + side), slice(x, x + side))
                    p, t = probability[block].mean().double(), target[block].mean().double()
                    entropies.append(-(t * p.log() + (1 - t) * (1 - p).log()))
        expected.append(torch.stack(entropies).mean())
    loss, errors = share_loss(probability, target)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    whole = (probability.unfold(2, 16, 16).unfold(3, 16, 16) - target.unfold(2, 16, 16).unfold(3, 16, 16)).mean((4, 5))
    assert errors["error_16"] == pytest.approx(whole.abs().mean().item(), abs=1e-6)
    assert list(share_loss(probability[..., :8, :], target[..., :8, :])[1]) == ["error_4"], "no block of 16 px fits"


def test_pixels_may_move_within_the_smallest_block_at_no_cost() -> None:
    target = torch.zeros(1, 1, 64, 64)
    target[..., 8:10, 8:12] = 1
    assert share_loss(torch.roll(target, 2, dims=2), target) == share_loss(target, target)
    assert share_loss(torch.roll(target, 4, dims=2), target)[0] > share_loss(target, target)[0]
