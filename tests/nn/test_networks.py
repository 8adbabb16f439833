"""The networks against their specification, the wavelet library, and naive twins."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from wsi_stain.config.model import GeneratorConfig
from wsi_stain.errors import BundleError, DeviceError
from wsi_stain.nn.coa import CoA, global_attention, windowed_attention
from wsi_stain.nn.discriminator import Discriminator
from wsi_stain.nn.encoder import Encoder
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import TorchGenerator, load_generator, pick_device, save_half
from wsi_stain.nn.pixels import to_pixels, to_tensor
from wsi_stain.nn.vmfe import VMFE
from wsi_stain.nn.wavelet import LibraryHaar, StridedHaar, WTConv, use_strided_haar

SMALL = GeneratorConfig(channels=4, blocks=4)
RADIUS_PX = 129
"""Radius of the receptive field without attention, from the kernels and strides."""


def learned(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def trained_like(config: GeneratorConfig, seed: int = 0) -> Generator:
    """A generator whose weights and statistics are far from their initial values."""
    torch.manual_seed(seed)
    generator = Generator(config)
    for name, buffer in generator.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)
    return generator.eval()


def test_parameter_counts_at_width_64_are_those_of_the_reference() -> None:
    generator = Generator(GeneratorConfig(channels=64))
    assert generator.encoder is not None
    assert learned(generator) - learned(generator.encoder) == 14_123_267
    assert learned(VMFE(64)) == 1_234_304
    assert learned(Encoder(64)) == 18_740_288


def test_haar_filters_are_constants_and_stay_out_of_the_weights() -> None:
    assert not [key for key in Generator(SMALL).state_dict() if "transform" in key or "haar" in key]


def test_strided_haar_equals_the_library_forwards_backwards_and_inverted() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float32, requires_grad=True)
    library, strided = LibraryHaar(), StridedHaar()
    expected, actual = library.split(x), strided.split(x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * direction).sum(), x)[0] for y in (expected, actual)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(strided.merge(direction), library.merge(direction), atol=1e-5, rtol=0)
    torch.testing.assert_close(strided.merge(actual), x, atol=1e-5, rtol=0)


def test_generator_is_the_same_with_either_haar() -> None:
    generator = trained_like(SMALL)
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    with torch.inference_mode():
        expected = generator(x)
        use_strided_haar(generator)
        torch.testing.assert_close(generator(x), expected, atol=1e-4, rtol=0)


def test_wavelet_branch_with_identity_kernels_returns_its_input() -> None:
    conv = WTConv(3, kernel=3, levels=3)
    for part in conv.convs:
        nn.init.dirac_(part.weight, groups=part.groups)
    for scale in conv.scales:
        nn.init.ones_(scale.weight)
    nn.init.zeros_(conv.base.weight)
    nn.init.zeros_(conv.base.bias)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        # Level l sees the unprocessed LL of level l - 1 and adds its reconstruction to LL: with identity kernels the
        # three levels give x + P1 x + P2 x, where P_l is the mean over 2^l × 2^l px (the LL band carried back).
        coarse = [F.interpolate(F.avg_pool2d(x, n), scale_factor=n, mode="nearest") for n in (2, 4)]
        torch.testing.assert_close(conv(x), x + sum(coarse), atol=1e-5, rtol=0)


def test_wtconv_without_wavelets_is_its_depthwise_convolution() -> None:
    conv = WTConv(3, kernel=5, levels=2, wavelet=False)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.base.weight, conv.base.bias, padding=2, groups=3))


@pytest.mark.parametrize("window", [32, 16])
def test_windowed_attention_equals_a_loop_over_windows(window: int) -> None:
    torch.manual_seed(1)
    n, d, h, w = 2, 3, 64, 96
    q, k, v = torch.randn(3, n, d, h, w)
    expected = torch.empty_like(q)
    for i in range(n):
        for y, x in itertools.product(range(0, h, window), range(0, w, window)):
            margin = window // 2
            rows, columns = (slice(max(0, at - margin), at + window + margin) for at in (y, x))
            query = q[i, :, y : y + window, x : x + window].flatten(1).T
            key, value = (t[i, :, rows, columns].flatten(1).T for t in (k, v))
            weights = torch.softmax(query @ key.T / d**0.5, dim=1)
            expected[i, :, y : y + window, x : x + window] = (weights @ value).T.unflatten(1, (window, window))
    torch.testing.assert_close(windowed_attention(q, k, v, window), expected, atol=1e-5, rtol=1e-4)


def test_global_attention_equals_softmax_over_all_tokens() -> None:
    q, k, v = torch.randn(3, 1, 4, 5, 6)
    weights = torch.softmax(q.flatten(2)[0].T @ k.flatten(2)[0] / 2.0, dim=1)
    expected = (weights @ v.flatten(2)[0].T).T.unflatten(1, (5, 6))[None]
    torch.testing.assert_close(global_attention(q, k, v), expected, atol=1e-5, rtol=1e-4)


def test_attention_reads_the_encoder_and_alpha_scales_it() -> None:
    coa = CoA(4, "windowed", 0.2).eval()
    features, context = torch.randn(2, 1, 4, 32, 32)
    full = coa(features, context) - features
    assert full.abs().max() > 1e-3
    assert not torch.allclose(coa(features, context + torch.randn_like(context)), coa(features, context))
    coa.alpha = 0.4
    torch.testing.assert_close(coa(features, context) - features, 2 * full, atol=1e-6, rtol=1e-4)


def test_every_weight_of_the_generator_takes_part() -> None:
    generator = Generator(SMALL)
    generator(torch.rand(2, 3, 128, 128)).square().sum().backward()
    # A convolution's bias before batch norm has no effect in training mode, but its gradient exists; None means unused.
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("config", [SMALL, GeneratorConfig(channels=4, blocks=4, coa=False)])
def test_a_pixel_does_not_depend_on_the_tile_it_is_computed_in(config: GeneratorConfig) -> None:
    generator = trained_like(config)
    step = generator.multiple
    side = 640
    image = torch.rand(1, 3, side, side) * 2 - 1
    with torch.inference_mode():
        whole = generator(image)
        y = -(-128 // step) * step
        tile = generator(image[..., y:, y:])
    # The keys of a window lie up to 64 px beyond it, and each feature depends on the pixels around it.
    margin = RADIUS_PX + 128 + 64 if config.coa else RADIUS_PX
    inner = slice(margin, side - y - margin)
    torch.testing.assert_close(tile[..., inner, inner], whole[..., y:, y:][..., inner, inner], atol=2e-5, rtol=0)


def test_pixels_go_to_tensors_and_back_unchanged() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = to_tensor(pixels)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_pixels(tensor), pixels)


def test_a_tile_does_not_depend_on_its_companions_or_on_training_mode_statistics() -> None:
    generator = TorchGenerator(trained_like(SMALL), "cpu")
    tiles = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
    before = {k: v.clone() for k, v in generator.module.state_dict().items()}
    together = generator(tiles)
    np.testing.assert_array_equal(together, np.concatenate([generator(tiles[i : i + 1]) for i in range(3)]))
    for key, value in generator.module.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=0, rtol=0)


def test_half_precision_weights_change_pixels_by_two_at_most(tmp_path) -> None:
    from safetensors.torch import save_file

    generator = trained_like(SMALL)
    save_file(generator.state_dict(), tmp_path / "full.safetensors")
    save_half(tmp_path / "full.safetensors", tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * (tmp_path / "full.safetensors").stat().st_size
    tile = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3), dtype=np.uint8)
    full, half = (
        TorchGenerator(load_generator(SMALL, tmp_path / f"{name}.safetensors"), "cpu")(tile).astype(int)
        for name in ("full", "half")
    )
    assert np.abs(full - half).max() <= 2


def test_weights_of_another_network_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file(Generator(SMALL).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match="does not fit the network"):
        load_generator(GeneratorConfig(channels=8), tmp_path / "w.safetensors")


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(DeviceError, match="no such device"):
        pick_device("gpu")
    with pytest.raises(DeviceError, match="use --device cpu"):
        pick_device(f"cuda:{torch.cuda.device_count()}")


def test_discriminator_judges_70_pixel_patches_and_sees_the_he() -> None:
    discriminator = Discriminator(4).eval()
    he, ihc = torch.randn(2, 1, 3, 128, 128)
    ihc.requires_grad_(True)
    logits = discriminator(he, ihc)
    centre = logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2]
    touched = torch.autograd.grad(centre, ihc)[0].abs().sum((0, 1)).nonzero()
    assert (touched.max(0).values - touched.min(0).values + 1).tolist() == [70, 70]
    assert not torch.allclose(discriminator(he + 1, ihc), logits)
