"""The fast form of a generator: equal to the plain one, fold by fold; its precisions; what a tile may depend on."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from builders.runs import restless
from PIL import Image
from torch import Tensor, nn

from wsi_stain.config.model import GeneratorConfig
from wsi_stain.errors import DeviceError
from wsi_stain.measure.palette import Palette
from wsi_stain.model.bundle import IDENTITY, Bundle
from wsi_stain.model.tile_tolerance import field
from wsi_stain.nn import fast_attention, fast_layers, inference
from wsi_stain.nn.coa import CoA, windowed_attention
from wsi_stain.nn.fast_attention import FastCoA, attend, in_windows
from wsi_stain.nn.fast_layers import DenseHaar, EnlargingConv, FastGRU, PhasedConv, SlicedHaar
from wsi_stain.nn.folding import fold_sequence, folded
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import DTYPES, TorchGenerator, load_generator, pick_device, pick_precision
from wsi_stain.nn.msfpm import ConvGRU
from wsi_stain.nn.pixels import to_levels, to_pixels, to_tensor
from wsi_stain.nn.wavelet import LibraryHaar, WTConv, use_strided_haar

LEAST_PSNR = 45.0
"""dB of the fast form against the plain module in float32; design.md, section 10."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def random(*shape: int) -> Tensor:
    return last(torch.randn(*shape, dtype=torch.float64))


def settled(module: nn.Module) -> nn.Module:
    """With statistics and parameters that do not cancel out, in float64."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2.0)
            nn.init.normal_(part.bias, std=0.1)
    return restless(module).double().requires_grad_(False)


def make(**settings) -> Generator:
    module = settled(Generator(GeneratorConfig(**{"channels": 4, "blocks": 4, **settings})))
    assert isinstance(module, Generator)
    return module


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.square(a.astype(float) - b).mean())
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"upsample": "resize"},
        {"attention": "global"},
        {"window": 64},
        {"head": "stain"},
        {"coa": False},
        {"wavelet": False},
        {"channels": 32, "coa": False},  # wide enough for Haar by slices in every layer
    ],
    ids=str,
)
def test_the_fast_form_is_the_same_function(settings: dict) -> None:
    plain = make(**settings)
    use_strided_haar(plain)  # the library's filters are rounded to float32, which is tested below
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    size = (128, 256) if plain.coa is not None and plain.coa.window else (64, 72)
    pixels = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    expected = plain(to_tensor(pixels.numpy()).double())
    # to_tensor rounds to float32 on its way
    torch.testing.assert_close(
        folded(plain, torch.float64)(to_levels(pixels, torch.float64)), expected, atol=1e-6, rtol=0
    )
    assert expected.std() > 0.01, "an image must differ from place to place"
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=0, rtol=0)


def test_in_float32_the_fast_form_is_within_rounding() -> None:
    plain = make().float()
    pixels = torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8)
    expected = plain(to_tensor(pixels.numpy()))
    torch.testing.assert_close(folded(plain)(to_levels(pixels, torch.float32)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make_haar", [SlicedHaar, lambda: DenseHaar(3)], ids=["sliced", "dense"])
def test_both_haars_equal_the_library(make_haar) -> None:
    haar, library = make_haar().double(), LibraryHaar().double()
    x = random(2, 3, 12, 20)
    bands = haar.split(x)
    expected = library.split(x)  # (N, C, 4, H/2, W/2)
    torch.testing.assert_close(bands.unflatten(1, (4, 3)).transpose(1, 2), expected, atol=1e-6, rtol=0)
    changed = last(bands * random(1, 12, 1, 1))
    merged = library.merge(changed.unflatten(1, (4, 3)).transpose(1, 2))
    torch.testing.assert_close(haar.merge(changed), merged, atol=1e-6, rtol=0)
    torch.testing.assert_close(haar.merge(bands), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [3, fast_layers.NARROW])
@pytest.mark.parametrize(("kernel", "levels"), [(3, 1), (7, 3)])
def test_a_wavelet_convolution_and_its_norm_become_one(channels: int, kernel: int, levels: int) -> None:
    plain = nn.Sequential(WTConv(channels, kernel, levels), nn.BatchNorm2d(channels))
    for scale in (plain[0].base_scale, *plain[0].scales):
        nn.init.uniform_(scale.weight, 0.5, 2.0)
    settled(plain)
    use_strided_haar(plain)
    x = random(2, channels, 16, 24)
    expected = plain(x)
    torch.testing.assert_close(fold_sequence(plain)(x), expected)


@pytest.mark.parametrize("kind", ["transposed", "resize"])
def test_a_step_of_either_decoder_becomes_one_convolution(kind) -> None:
    from wsi_stain.nn.generator import _upsample

    plain = settled(nn.Sequential(*_upsample(5, 3, kind)))
    x = random(2, 5, 6, 7)
    fast = fold_sequence(plain)
    assert [type(layer) for layer in fast] == [EnlargingConv, nn.ReLU]
    torch.testing.assert_close(fast(x), plain(x))


def test_neighbouring_pixels_at_once_are_the_same_pixels() -> None:
    plain = nn.Conv2d(5, 3, 7).double()
    x = random(2, 5, 14, 8 + 6)
    torch.testing.assert_close(PhasedConv(plain)(x), plain(x))
    assert PhasedConv(plain).bfloat16()(x.bfloat16()).dtype == torch.float32


def test_one_convolution_for_both_gates_gives_the_same_state() -> None:
    plain = ConvGRU(4).double()
    h, x = random(2, 4, 9, 7), random(2, 4, 9, 7)
    expected = plain(h, x)
    torch.testing.assert_close(FastGRU(plain)(h, x), expected)


@pytest.mark.parametrize(("attention", "window"), [("windowed", 32), ("windowed", 16), ("global", 32)])
def test_attention_without_masks_out_and_norm_is_the_same(attention, window: int) -> None:
    plain = settled(CoA(4, attention, 0.2, window))
    features, context = random(2, 4, 64, 96), random(2, 4, 64, 96)
    expected = plain(features, context)
    torch.testing.assert_close(FastCoA(plain)(features, context), expected)  # type: ignore[arg-type]
    assert (expected - features).abs().max() > 0.01


def test_attention_of_bfloat16_on_a_cpu_equals_torch_s_own() -> None:
    keys = fast_attention.SCORES // 64  # for two parts
    q, k, v = torch.randn(1, 96, 16) / 4, torch.randn(1, keys, 16), torch.randn(1, keys, 16)
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(attend(q, k, v), expected)
    actual = attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    torch.testing.assert_close(actual, expected, atol=0.03, rtol=0)


def test_windows_of_the_fast_form_are_those_of_training() -> None:
    q, k, v = (random(1, 8, 96, 64) for _ in range(3))
    tokens = [t.permute(0, 2, 3, 1) for t in (q, k, v)]
    actual = in_windows(*tokens, side=32).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, windowed_attention(q * 8**0.5, k, v))


def test_norms_leave_and_nothing_learns() -> None:
    fast = folded(make().float())
    kinds = {type(part) for part in fast.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.ConvTranspose2d, nn.Upsample, WTConv, ConvGRU, CoA}
    assert not any(p.requires_grad for p in fast.parameters())
    assert not fast.training


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """Three smooth pictures: uint8 (3, 256, 256, 3)."""
    coarse = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return to_pixels(F.interpolate(coarse, size=256, mode="bicubic").mul(2).sub(1).clamp(-1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tile_does_not_depend_on_its_companions(tiles, precision) -> None:
    generator = TorchGenerator(make(channels=16).float(), "cpu", precision)
    together = generator(tiles)
    np.testing.assert_array_equal(generator(tiles[1:2]), together[1:2])
    np.testing.assert_array_equal(generator(tiles[::-1])[::-1], together)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings", [{"upsample": "transposed"}, {"upsample": "resize"}, {"head": "stain", "window": 64}], ids=str
)
def test_no_bit_depends_on_the_number_of_threads(tiles, threads, precision, settings) -> None:
    generator = TorchGenerator(make(channels=16, **settings).float(), "cpu", precision)
    x = to_levels(torch.from_numpy(tiles[:1]), DTYPES[precision])
    threads(1)
    expected = generator.module(x)
    for n in (3, 8, 12):  # one or another catches transposed convolutions, 2×2 ones that oneDNN pads, and σ
        threads(n)
        assert torch.equal(generator.module(x), expected), f"{n} threads"


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("fp32", 70), ("bf16", LEAST_PSNR)])
def test_a_stain_head_on_drawn_tissue_is_near_the_plain_module(precision, least: float) -> None:
    plain = make(channels=16, head="stain", upsample="resize").float()
    assert plain.head is not None
    plain.head.use(Palette(background=(247, 247, 247), strength=0.5))
    tile = field(Bundle.open(), 256)[None]
    with torch.inference_mode():
        expected = to_pixels(plain(to_tensor(tile)))
    assert psnr(TorchGenerator(plain, "cpu", precision)(tile), expected) >= least
    assert expected.std() > 5, "stain must differ from place to place"


@pytest.mark.parametrize(("precision", "least"), [("fp32", 70), ("bf16", LEAST_PSNR)])
def test_the_shipped_model_on_drawn_tissue_is_near_the_plain_module(precision, least: float) -> None:
    bundle = Bundle.open()
    plain = load_generator(bundle.config.generator, bundle.weights_path)
    tile = field(bundle, 256)[None]
    with torch.inference_mode():
        expected = to_pixels(plain(to_tensor(tile)))
    assert psnr(TorchGenerator(plain, "cpu", precision)(tile), expected) >= least
    assert expected.std() > 5, "stain must differ from place to place"


HARD = ("he/x07680_y09216.jpg", "he/x07168_y05120.jpg")
"""Of the validation fields: the one where bfloat16 was worst (44 dB, before the stem's weights stayed in float32), and
another one."""


def real_tiles(data: Path) -> list[np.ndarray]:
    """uint8 (1, 512, 512, 3) each."""
    return [np.asarray(Image.open(data / "pairs/cam52" / name).convert("RGB"))[None] for name in HARD]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_shipped_model_on_real_tiles_is_within_45_db_of_the_plain_module(data: Path, precision) -> None:
    bundle = Bundle.open()
    plain = load_generator(bundle.config.generator, bundle.weights_path)
    generator = TorchGenerator(plain, "cpu", precision)
    for tile in real_tiles(data):
        with torch.inference_mode():
            expected = to_pixels(plain(to_tensor(tile)))
        assert psnr(generator(tile), expected) >= LEAST_PSNR


@pytest.mark.parametrize(
    ("has", "best"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx2": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_what_the_processor_has_units_for(monkeypatch, has: dict, best: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert pick_precision("auto", "cpu") == best
    assert Bundle.open().precision("cpu", "auto") == best
    assert [pick_precision(name, "cpu") for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_auto_is_float32_where_torch_cannot_tell(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize(("generation", "best"), [(9, "bf16"), (8, "bf16"), (7, "fp16"), (6, "fp32")])
def test_auto_on_a_gpu_goes_by_its_generation(monkeypatch, generation: int, best: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    monkeypatch.setattr(inference, "pick_device", lambda name: "cuda:0")
    assert pick_precision("auto", "cuda:0") == best
    assert pick_precision("fp16", "cuda:0") == "fp16"


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(DeviceError, match=r"--precision fp16: .*choose auto, fp32 or bf16"):
        Bundle.open().generator("cpu", precision="fp16")


def test_identity_has_no_arithmetic_to_choose() -> None:
    assert Bundle(IDENTITY, None).precision("auto", "auto") == "fp32"


@pytest.fixture(scope="module")
def cuda() -> str:
    """A CUDA device; without one the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device on this machine")
    return "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("upsample", ["transposed", "resize"])
def test_a_gpu_paints_the_same_picture_whatever_the_batch(cuda: str, tiles, precision, upsample) -> None:
    plain = make(channels=16, upsample=upsample).float()
    with torch.inference_mode():
        expected = to_pixels(plain(to_tensor(tiles)))
    generator = TorchGenerator(plain, cuda, precision)
    actual = generator(np.concatenate([tiles] * 4))
    assert psnr(actual[:3], expected) > LEAST_PSNR
    for again in np.split(actual, 4)[1:]:
        np.testing.assert_array_equal(again, actual[:3])
    np.testing.assert_array_equal(generator(tiles[2:]), actual[2:3])


def test_mps_is_accepted_where_it_exists_and_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(DeviceError, match="no GPU of Apple"):
            pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == "mps"
    assert pick_precision("auto", "mps") == "fp32"
    with pytest.raises(DeviceError, match="computes in float32"):
        pick_precision("bf16", "mps")
