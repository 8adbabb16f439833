"""The seam certificate: silent where there is no seam, loud where there is one, and the same however a run went."""

import json
from functools import cache
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save_file
from torch import nn

from wsi_stain import phantom
from wsi_stain.cli import group
from wsi_stain.config.convert import ConvertConfig, OutputConfig
from wsi_stain.config.loader import dump
from wsi_stain.config.loader import load as load_config
from wsi_stain.config.model import GeneratorConfig, TileTolerance
from wsi_stain.conversion import certify, engine, painter, seams, survey
from wsi_stain.conversion.certificate import FEWEST_LINES, ROUNDING, Certificate, judge
from wsi_stain.conversion.engine import ConvertRequest, convert
from wsi_stain.errors import ConfigError
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import Bundle, sha256_of
from wsi_stain.nn.generator import Generator
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import CanvasSpec
from wsi_stain.output.encoding import Encoding
from wsi_stain.output.tiff_canvas import TiffCanvas
from wsi_stain.output.zarr_canvas import ZarrCanvas
from wsi_stain.slide.slide import Slide
from wsi_stain.tiling.grid import Block, TileGrid

SIDE = 1024
GRIDS = [(512, 0), (256, 0), (256, 64), (256, 128)]


@cache
def histology() -> np.ndarray:
    """Procedural H&E, uint8 (SIDE, SIDE, 3)."""
    return phantom.render(Box.at(1024, 1024, Size(SIDE, SIDE)), size=Size(3072, 3072), mpp=1.0, seed=2)


def noise(h: int, w: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def smooth(h: int, w: int, seed: int = 0) -> np.ndarray:
    return cv2.resize(noise(h // 16, w // 16, seed), (w, h), interpolation=cv2.INTER_CUBIC)


def stepped(image: np.ndarray, grid: TileGrid, k: int) -> np.ndarray:
    """Every other tile is k grey levels brighter."""
    y, x = (np.arange(n) // grid.stride for n in grid.size)
    return np.clip(image.astype(int) + k * ((y[:, None] + x) % 2)[..., None], 0, 255).astype(np.uint8)


def as_viewed(image: np.ndarray) -> np.ndarray:
    """Encoded as an output is."""
    out, encoding = np.empty_like(image), Encoding()
    for y, x in product(range(0, image.shape[0], 512), range(0, image.shape[1], 512)):
        out[y : y + 512, x : x + 512] = encoding.decode(encoding.encode(image[y : y + 512, x : x + 512]))
    return out


def examined(image: np.ndarray, grid: TileGrid, seed: int = 0) -> Certificate:
    """The certificate of an image, of its steps alone."""
    whole = Box.of(grid.size)
    lines = seams.choose(grid, list(grid.tiles(whole)), seed).lines
    actual = [seams.steps(image[line.box.slices()], line, seams.shifts(grid)) for line in lines]
    return judge(actual, [], tolerance=None, stride=grid.stride)


# Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "overlap"), GRIDS[1:])
@pytest.mark.parametrize("kind", ["constant", "noise", "histology", "histology as JPEG"])
def test_an_image_that_knows_no_tiles_passes(tile: int, overlap: int, kind: str) -> None:
    grid = TileGrid(Size(SIDE, SIDE), tile, overlap)
    failed = 0
    for seed in range(6):
        if kind == "noise":
            image = noise(SIDE, SIDE, seed)
        elif kind == "constant":
            image = np.full((SIDE, SIDE, 3), 200, np.uint8)
        else:  # other places of the tiles on the same tissue
            image = np.roll(histology(), (40 * seed, 24 * seed), (0, 1))
            image = as_viewed(image) if "JPEG" in kind else image
        certificate = examined(image, grid, seed)
        assert certificate.lines >= FEWEST_LINES
        failed += certificate.verdict == "fail"
    assert failed == 0


@pytest.mark.parametrize(("tile", "overlap"), GRIDS[1:2])
def test_a_step_of_three_grey_levels_on_histology_is_found_and_measured(tile: int, overlap: int) -> None:
    grid = TileGrid(Size(SIDE, SIDE), tile, overlap)
    excess = []
    for k in (0, 3, 6, 12):
        actual = examined(as_viewed(stepped(histology(), grid, k)), grid)
        assert (actual.verdict == "fail") == (k >= 3), k
        excess.append(actual.excess)
    assert excess == sorted(excess)
    assert excess[-1] > 6
    on_background = examined(stepped(np.full((SIDE, SIDE, 3), 230, np.uint8), grid, 1), grid)
    assert (on_background.verdict, on_background.excess) == ("fail", 1.0), (
        "one grey level is the whole of what is seen there"
    )


def test_a_step_off_the_tile_lines_is_not_taken_for_a_seam() -> None:
    grid = TileGrid(Size(SIDE, SIDE), 256, 0)
    elsewhere = np.roll(stepped(histology(), grid, 12), (40, 40), (0, 1))
    assert examined(elsewhere, grid).verdict == "pass"


@pytest.mark.parametrize(("tile", "overlap"), GRIDS)
def test_steps_agree_with_their_definition_written_down(tile: int, overlap: int) -> None:
    grid = TileGrid(Size(SIDE, SIDE), tile, overlap)
    image, whole = noise(SIDE, SIDE, 1), Box(0, 0, SIDE, SIDE)
    for line in seams.choose(grid, list(grid.tiles(whole)), 0).lines[:6]:
        upright = image.astype(float) if line.axis else image.swapaxes(0, 1).astype(float)
        for shift, step in zip((0, 16, -48), seams.steps(image[line.box.slices()], line, (16, -48)), strict=True):
            at, pieces = line.at + shift, []
            for start in range(line.start, line.end, seams.PIECE):
                a, b, c, d = upright[start : start + seams.PIECE, at - 2 : at + 2].mean(0)
                pieces.append(np.abs((c - b) - ((b - a) + (d - c)) / 2))
            assert step == pytest.approx(np.mean(pieces))


# Where it looks ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_places_are_few_lie_in_tissue_and_do_not_know_the_blocks(data: st.DataObject) -> None:
    multiple = data.draw(st.sampled_from([1, 8, 32]))
    overlap = multiple * data.draw(st.integers(0, 4))
    tile = 2 * overlap + multiple * data.draw(st.integers(128 // multiple, 256 // multiple))
    size = Size(data.draw(st.integers(300, 3000)), data.draw(st.integers(300, 3000)))
    y, x = data.draw(st.integers(0, size.h // 3)), data.draw(st.integers(0, size.w // 3))
    region = Box(y, x, size.h, size.w)
    grid = TileGrid(size, tile, overlap, multiple, region=region)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    tissue = [box for box in grid.tiles(region) if rng.random() < 0.9]
    actual = seams.choose(grid, tissue, 7)
    assert actual == seams.choose(grid, tissue, 7)
    assert len(actual.offset_tiles) <= max(1, len(tissue) / 100)
    for box in (*(line.box for line in actual.lines), *(place.compare for place in actual.offset_tiles)):
        assert region.contains(box)
        assert set(grid.tiles(box)) <= set(tissue)
    ends = {0, overlap % grid.stride}
    for line in actual.lines:
        assert line.at % grid.stride in ends
        assert not any((line.at + shift) % grid.stride in ends for shift in seams.shifts(grid))
    for offset, compare in actual.offset_tiles:
        assert offset.y0 % multiple == offset.x0 % multiple == 0
        assert offset.y0 % grid.stride, "a tile of the grid proves nothing"
        assert (offset.size, offset.contains(compare)) == (Size(tile, tile), True)
        for core in (512, 2048):
            blocks = TileGrid(size, tile, overlap, multiple, region=region, block=core).blocks()
            assert sum(block.write.contains(compare) for block in blocks) == 1


def test_a_slide_without_two_tiles_of_tissue_side_by_side_is_not_applicable() -> None:
    grid = TileGrid(Size(2000, 2000), 256, 64)
    for tissue in ([], [Box(384, 384, 640, 640)]):
        assert seams.choose(grid, tissue, 0) == seams.SeamSites()
    assert judge([], [], tolerance=None, stride=192).verdict == "not applicable"


# Other tiles, other pixels -------------------------------------------------------------------------------------------


def noted(difference: int, positive: tuple[int, int] = (0, 0), side: int = 128) -> dict:
    return {"differences": [0] * difference + [3 * side * side], "positive": list(positive)}


def test_what_is_noted_of_a_place_counts_channels_and_positive_pixels() -> None:
    background, brown = (240, 240, 240), (150, 90, 40)
    painted, again = np.full((8, 8, 3), background, np.uint8), np.full((8, 8, 3), background, np.uint8)
    again[0, :5] = brown
    actual = seams.compare(painted, again, background)
    assert actual["positive"] == [0, 5]
    counts = actual["differences"]
    assert (counts[0], counts[90], counts[150], counts[200], sum(counts)) == (3 * 59, 5, 5, 5, 3 * 64)


@pytest.mark.parametrize(
    ("tolerance", "allowed"),
    [
        (None, ROUNDING),
        (TileTolerance(0.02, 1, 3), 0.02 * (256 / 128) ** 2),
        (TileTolerance(9.0, 40, 90), ROUNDING),  # no tolerance excuses what can be seen
    ],
)
def test_the_mean_is_held_to_the_tolerance_and_never_beyond_rounding(tolerance: TileTolerance, allowed: float) -> None:
    def verdict(share: float) -> str:
        place = noted(0)
        ones = round(share * place["differences"][0])
        place["differences"] = [place["differences"][0] - ones, ones]
        return judge([], [place], tolerance=tolerance, stride=256).verdict

    assert verdict(0.9 * allowed) == "pass"
    assert verdict(1.1 * allowed) == "fail"


def test_more_pixels_beyond_the_percentile_allowed_than_can_be_fail() -> None:
    place = noted(0)
    total, tolerance = place["differences"][0], TileTolerance(0.4, 2, 100)
    for share, verdict in ((0.01 * 4 * 0.9, "pass"), (0.01 * 4 * 1.1, "fail")):
        few = round(share * total)
        counted = {**place, "differences": [total - few, 0, 0, few]}
        assert judge([], [counted], tolerance=tolerance, stride=256).verdict == verdict


def test_a_changed_positive_area_fails_even_where_places_cancel_out() -> None:
    one, other = noted(0, (0, 200)), noted(0, (200, 0))  # 1.2 % of 128² px each
    actual = judge([], [one, other], tolerance=None, stride=256)
    assert actual.dab_change == pytest.approx(100 * 200 / 128**2, abs=1e-3)
    assert actual.reasons == ("a shifted tile grid gives a different positive area",)
    assert judge([], [noted(0, (0, 70))], tolerance=None, stride=256).verdict == "pass"


# Whole conversions ---------------------------------------------------------------------------------------------------


class Honest:
    """Looks 2 px around, and never at its tile."""

    multiple, batch = 1, 4

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        return np.stack([cv2.blur(tile, (5, 5), borderType=cv2.BORDER_REPLICATE) for tile in tiles])


class Levelling(Honest):
    """Gives every tile the same mean, as instance norm does."""

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        means = tiles.mean((1, 2), keepdims=True)
        return np.clip(tiles - means + 160, 0, 255).astype(np.uint8)


class Fake:
    """A model made of a class."""

    name, version, stain, stain_slug, sha256 = "fake", "1", "Fake", "fake", "f"
    multiple, tolerance, is_pointwise, has_tile_statistics, network_sha256 = 1, None, False, False, None
    channels = ()
    expects, trust = "any", None
    mpp, background, tile = None, (243, 243, 243), 128

    def __init__(self, make: type, overlap: int) -> None:
        self.make, self.overlap = make, overlap

    def precision(self, device: str, choice: str) -> str:
        """A class has none."""
        return "fp32"

    def generator(self, device: str, *, precision: str) -> Honest:
        return self.make()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    def put(make: type, overlap: int = 32) -> None:
        actual = type("Found", (), {"open": staticmethod(lambda _: Fake(make, overlap))})
        for module in (survey, painter):
            monkeypatch.setattr(module, "Bundle", actual)

    return put


def slide_of(folder: Path, image: np.ndarray, um: float = 0.5) -> Path:
    path, per_cm = folder / "s.tif", round(1e4 / um)
    resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "centimeter"}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="zlib", **resolution)
    return path


def run(slide: Path, output: Path, *keys: str, **fields) -> engine.ConversionResult:
    config = load_config(ConvertConfig, None, ["grid.block=512", *keys])
    output.parent.mkdir(exist_ok=True)
    return convert(ConvertRequest(slide, output, **{"mask": "none", "workers": 0, "config": config, **fields}))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_a_generator_that_sees_its_tile_fails_and_the_output_says_so(tmp_path: Path, use, ending: str) -> None:
    slide = slide_of(tmp_path, smooth(1200, 1200))
    for make, overlap, verdict in ((Honest, 32, "pass"), (Levelling, 0, "fail"), (Levelling, 32, "fail")):
        use(make, overlap)
        result = run(slide, tmp_path / f"{make.__name__}{overlap}" / f"x.{ending}")
        actual = result.record["seams"]
        assert actual["verdict"] == verdict
        assert ("the image has a step at tile boundaries" in actual["reasons"]) == (verdict == "fail" and not overlap)
        if ending == "ome.tiff":
            errors = ometiff.describe(result.output)["annotations"]
        else:
            errors = json.loads((result.output / "zarr.json").read_text())["attributes"]["wsi_stain"]
        assert errors["seams"].startswith(verdict)
        assert errors["seams_difference"].startswith(f"mean {actual['difference_mean']:.3f}")


@pytest.mark.slow
def test_the_certificate_is_the_same_for_all_workers_blocks_and_interruptions(tmp_path: Path, use) -> None:
    class Failing(Levelling):
        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            nonlocal left
            left -= 1
            if left == 0:
                raise ValueError("no luck")
            return super().__call__(tiles)

    use(Failing)
    slide, left, actual = slide_of(tmp_path, smooth(1500, 1300)), -1, []
    for name, workers, block in (("a", 0, 512), ("b", 3, 512), ("c", 2, 1024)):
        actual.append(run(slide, tmp_path / name / "x.ome.tiff", f"grid.block={block}", workers=workers))
    for left in (40, 20):  # noqa: B007 - the generator counts it down
        with pytest.raises(ValueError, match="no luck"):
            run(slide, tmp_path / "d" / "x.ome.tiff")
    actual.append(run(slide, tmp_path / "d" / "x.ome.tiff"))
    assert 0 < actual[-1].record["blocks"]["painted_in_this_run"] < 9
    assert actual[0].record["seams"]["places"] == 2
    assert all(result.record["seams"] == actual[0].record["seams"] for result in actual)
    assert actual[-1].output.read_bytes() == actual[0].output.read_bytes() == actual[1].output.read_bytes()


def test_it_costs_at_most_two_in_a_hundred_tiles_and_can_be_left_out(tmp_path: Path, use) -> None:
    calls = []

    class Counting(Honest):
        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            calls.append(len(tiles))
            return super().__call__(tiles)

    use(Counting)
    slide = slide_of(tmp_path, smooth(1500, 1300))
    result = run(slide, tmp_path / "x.ome.tiff")
    tiles = result.record["tiles"]
    assert tiles["tissue"] >= 200
    assert 0 < sum(calls) - tiles["tissue"] == tiles["stained_again_in_this_run"] <= 0.02 * tiles["tissue"]
    calls.clear()
    without = run(slide, tmp_path / "y.ome.tiff", "certificate=false")
    assert sum(calls) == tiles["tissue"]
    assert without.record["seams"] is None


@pytest.mark.parametrize(("tint", "is_seen"), [(0, False), (-2, True)])
def test_glass_that_a_network_tints_is_seen_in_the_output(tmp_path: Path, use, tint: int, is_seen: bool) -> None:
    class Tinting(Honest):
        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            return np.full_like(tiles, Fake.background[0] + tint)

    use(Tinting)
    image = np.full((2048, 2048, 3), 243, np.uint8)
    image[960:1100, 960:1100] = (150, 90, 160)
    slide = slide_of(tmp_path, image, um=1.0)
    result = run(slide, tmp_path / "x.ome.tiff", "grid.tile=512", "grid.overlap=64", mask="auto")
    assert result.record["seams"]["outline"] == pytest.approx(abs(tint), abs=0.2)
    assert ("stained tiles have a visible outline on the background" in result.record["seams"]["reasons"]) == is_seen


def test_identity_has_nothing_to_examine_and_nothing_to_pay(tmp_path: Path) -> None:
    result = run(slide_of(tmp_path, smooth(700, 700)), tmp_path / "x.ome.tiff", model="identity")
    assert result.record["seams"]["verdict"] == "pass"
    assert result.record["seams"]["lines"] == result.record["tiles"]["stained_again_in_this_run"] == 0


@pytest.mark.parametrize(
    "encoding", [OutputConfig(), OutputConfig(compression="deflate"), OutputConfig(subsampling="rgb")]
)
def test_what_is_read_from_a_canvas_is_what_viewers_decode(tmp_path: Path, encoding: OutputConfig) -> None:
    image = smooth(1040, 1104)
    spec = CanvasSpec(tmp_path / "x.ome.tiff", Size(1040, 1104), 512, (243, 243, 243), encoding)
    for canvas in (TiffCanvas(spec), ZarrCanvas(CanvasSpec(tmp_path / "x.ome.zarr", *list_of(spec)))):
        canvas.begin({})
        for block in TileGrid(spec.size, 256, 0, block=512).blocks():
            canvas.put(block, None if block.index == (1, 0) else image[block.write.slices()], {})
        expected = image.copy()
        expected[512:1024, :512] = 243
        viewed = expected.astype(int)
        if isinstance(canvas, TiffCanvas):
            canvas.finish()
            metadata = ometiff.OmeMetadata("x.ome.tiff", 0.5, None, "X", uuid="12345678-1234-5678-1234-567812345678")
            ometiff.write(spec.part, canvas, metadata)
            viewed = tifffile.imread(spec.part).astype(int)
        for box in (Box(0, 0, 1040, 1104), Box(500, 500, 530, 1030), Box(1030, 1100, 1040, 1104)):
            assert np.abs(canvas.read(box).astype(int) - viewed[box.slices()]).max() <= 0


def list_of(spec: CanvasSpec) -> tuple:
    return spec.size, spec.block, spec.background, spec.encoding


# Statistics of each tile ---------------------------------------------------------------------------------------------


def bundle_of(folder: Path, weights: dict | None = None, **generator) -> Path:
    """A bundle whose network takes its statistics from each tile; of random weights if none are given."""
    torch.manual_seed(0)
    shape = {"kind": "ceff", "channels": 4, "blocks": 4, "coa": False, "norm": "instance", **generator}
    module = Generator(GeneratorConfig(**shape))  # type: ignore[arg-type]
    for part in module.modules():
        if isinstance(part, nn.InstanceNorm2d | nn.BatchNorm2d):
            nn.init.normal_(part.bias, std=0.3)
    folder.mkdir()
    save_file(weights or module.state_dict(), folder / "generator.safetensors")
    (folder / "card.md").write_text("RESEARCH USE ONLY. Random weights.")
    spec = {
        "name": folder.name,
        "version": "1",
        "generator": shape,
        "input": {"stain": "H&E", "mpp": 1.0, "tile": 256, "overlap": 128},
        "output": {"stain": "CAM5.2"},
        "weights": {"file": "generator.safetensors", "sha256": sha256_of(folder / "generator.safetensors")},
    }
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    return folder


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slide_of(tmp_path_factory.mktemp("field"), histology(), um=1.0)


def test_statistics_per_tile_without_overlap_fail(
    tmp_path: Path, field: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The default model, but for its statistics: real weights draw real seams."""
    trained = Bundle.open()
    weights = load(trained.weights_path.read_bytes())
    frozen = ("running_mean", "running_var", "num_batches_tracked")
    learned = {k: v for k, v in weights.items() if k.rpartition(".")[2] not in frozen}
    shape = dump(trained.config.generator) | {"norm": "instance"}
    result = run(
        field,
        tmp_path / "x.ome.tiff",
        "grid.overlap=0",
        model=bundle_of(tmp_path / "bad", learned, **shape),
        norm="tile",
    )
    actual = result.record["seams"]
    assert actual["verdict"] == "fail"
    assert {"the image has a step at tile boundaries", "a shifted tile grid gives different pixels"} <= set(
        actual["reasons"]
    )
    assert "expect seams" in caplog.text


@pytest.mark.slow
def test_statistics_per_slide_are_the_default_and_bring_tiles_together(
    tmp_path: Path, field: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = bundle_of(tmp_path / "bad")
    region = (0, 0, 640, 640)
    per_tile = run(field, tmp_path / "t.ome.tiff", model=bad, norm="tile", region=region).record
    assert caplog.text.count("measured once") == 0
    per_slide = run(field, tmp_path / "s.ome.tiff", model=bad, region=region).record
    assert "measured once" in caplog.text
    assert per_slide["fingerprint"]["norm"] == "slide"
    assert per_slide["seams"]["difference_mean"] < per_tile["seams"]["difference_mean"] / 5


@pytest.mark.slow
def test_statistics_are_measured_once_and_survive_workers_and_interruptions(
    tmp_path: Path, field: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, measured, measure = bundle_of(tmp_path / "bad"), [], Bundle.measure_statistics

    def counting(self: Bundle, tiles: list, device: str = "cpu") -> bytes:
        measured.append(len(tiles))
        return measure(self, tiles, device)

    monkeypatch.setattr(Bundle, "measure_statistics", counting)
    region = (0, 0, 512, 640)
    whole = run(field, tmp_path / "a" / "x.ome.tiff", model=bad, region=region)
    put, left = TiffCanvas.put, 1

    def failing(self: TiffCanvas, block: Block, pixels: np.ndarray, notes: dict) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("no luck")
        put(self, block, pixels, notes)

    monkeypatch.setattr(TiffCanvas, "put", failing)
    with pytest.raises(ValueError, match="no luck"):
        run(field, tmp_path / "b" / "x.ome.tiff", model=bad, region=region)
    monkeypatch.setattr(TiffCanvas, "put", put)
    resumed = run(field, tmp_path / "b" / "x.ome.tiff", model=bad, region=region, workers=2)
    assert measured == [min(certify.CALIBRATION, whole.record["tiles"]["tissue"])] * 2
    assert resumed.output.read_bytes() == whole.output.read_bytes()


def test_frozen_statistics_are_those_of_the_tiles_they_were_measured_on(tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_of(tmp_path / "bad"))
    tiles = [histology()[y : y + 128, :128] for y in (0, 128)]
    path = tmp_path / "norm.safetensors"
    path.write_bytes(bundle.measure_statistics(tiles))
    statistics = load(path.read_bytes())
    stem = Generator(bundle.config.generator)
    stem.load_state_dict(load(bundle.weights_path.read_bytes()))
    given = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 127.5 - 1
    features = stem.vmfe.scale1[:2](given)  # padding and convolution, up to the first norm
    torch.testing.assert_close(statistics["vmfe.scale1.2.running_mean"], features.mean((0, 2, 3)).detach())
    # A tile no longer cares what lies far away from a pixel: that is what frozen means.
    one, other = histology()[:512, :512].copy(), histology()[:512, :512].copy()
    other[:, 256 + 136 :] = 255
    frozen, own = bundle.generator("cpu", statistics=path), bundle.generator("cpu")
    for generator, equal in ((frozen, True), (own, False)):
        a, b = (generator(image[None])[0, :, :248] for image in (one, other))
        assert np.array_equal(a, b) == equal


def test_a_choice_of_statistics_is_refused_where_there_is_none(tmp_path: Path, field: Path) -> None:
    good = bundle_of(tmp_path / "good", norm="batch")
    with pytest.raises(ConfigError, match="--norm is slide, but the statistics of good were frozen in training"):
        run(field, tmp_path / "x.ome.tiff", model=good, norm="slide")


# The command line, and real slides -----------------------------------------------------------------------------------


def test_the_command_prints_the_certificate_on_standard_error(tmp_path: Path) -> None:
    slide, output = slide_of(tmp_path, smooth(300, 300)), tmp_path / "x.ome.tiff"
    message = CliRunner().invoke(
        group, ["convert", str(slide), "--model", "identity", "-o", str(output), "--workers", "0"]
    )
    assert message.stdout.strip() == str(output)
    assert "seams    pass; each output pixel depends only on its own input pixel" in message.stderr


REAL = {
    "CMU-1-Small-Region.svs": {"region": (0, 1000, 1700, 1700)},
    "whole_pancreas_HE.tif": {"mpp": 1.0, "region": (6000, 5000, 900, 900)},
    "whole_stomach_HE.tif": {"region": (5000, 5000, 3500, 3500)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_default_model_passes_on_real_slides(data: Path, tmp_path: Path, name: str) -> None:
    """In tiles of 512 px, where more lines are to be seen than in those of 1024 that it is shipped with."""
    result = run(data / "slides" / name, tmp_path / "x.ome.tiff", "grid.block=2048", "grid.tile=512", **REAL[name])
    actual = result.record["seams"]
    assert actual["verdict"] == "pass", actual
    assert actual["places"] == 1
    assert actual["lines"] >= FEWEST_LINES


@pytest.mark.parametrize("name", REAL)
def test_real_tissue_shows_no_seam_of_tiles_that_nobody_cut(data: Path, name: str) -> None:
    with Slide.open(data / "slides" / name, mpp=REAL[name].get("mpp")) as slide:
        x, y, w, h = REAL[name]["region"]
        pixels = slide.at(None).read(Box.at(y, x, Size(min(h, 1536), min(w, 1536))))
    for tile, overlap in GRIDS[1:]:
        grid = TileGrid(Size(*pixels.shape[:2]), tile, overlap)
        assert examined(pixels, grid).verdict == "pass", (tile, overlap)
