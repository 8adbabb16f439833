"""Evaluation against contenders whose score is known, and the command as a user meets it."""

import csv
import functools
import gc
import json
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.fields import BACKGROUND, RULER, fields, judge, painted, perfect, stained
from PIL import Image

from wsi_stain.cli import main
from wsi_stain.errors import ConfigError
from wsi_stain.evaluate import fid
from wsi_stain.evaluate.columns import METRICS
from wsi_stain.evaluate.contenders import (
    Contender,
    baselines,
    from_bundle,
    from_folder,
    mean_colour,
    stain,
)
from wsi_stain.evaluate.evaluate import EvaluationResult, Field, evaluate
from wsi_stain.evaluate.figures import FieldPixels, MeasureSettings
from wsi_stain.evaluate.tables import plain, table
from wsi_stain.measure.deconvolution import POSITIVE_OD, dab
from wsi_stain.model.bundle import DEFAULT, Bundle, IdentityGenerator
from wsi_stain.model.training_run import TrainingRun


def values(result: EvaluationResult, row: str) -> dict[str, float]:
    return {metric: estimate.value for metric, estimate in result.rows[row].items()}


def test_the_real_stain_itself_is_perfect() -> None:
    actual = values(judge(Contender("perfect", perfect)), "perfect")
    for metric, value in actual.items():
        if " r" in metric and metric != "H r to H&E":
            assert value == pytest.approx(1), metric
        if "error" in metric or "divergence" in metric or "KL" in metric:
            assert value == pytest.approx(0), metric
    assert actual["PSNR, dB"] == np.inf
    assert actual["SSIM"] == pytest.approx(1)


def test_identity_scores_as_the_he_itself() -> None:
    rows = judge(from_bundle(Bundle.open("identity"), "cpu"), *baselines(None)).rows
    assert str(rows["identity"]) == str(rows["the H&E itself"])  # as text: undefined figures are equal too
    assert rows["identity"]["H r to H&E"].value == pytest.approx(1)


def test_the_error_of_a_stain_without_brown_is_the_brown_there_is() -> None:
    white = Contender("white", lambda view: np.full_like(view.real, 243))
    some = fields()
    positive = [(dab(field.read()[1], BACKGROUND) > POSITIVE_OD).mean() for field in some]
    actual = values(judge(white, of=some), "white")
    for scale in ("64 µm", "128 µm", "field"):
        assert actual[f"DAB+ error, {scale}"] == pytest.approx(np.mean(positive))
        assert np.isnan(actual[f"DAB+ r, {scale}"])


def test_figures_of_the_split_are_those_of_all_its_blocks_together() -> None:
    some = fields()
    shift = Contender("shift", lambda view: np.roll(view.real, 32, axis=1))
    shares = [[], []]
    for field in some:
        real = field.read()[1]
        for side, image in zip(shares, (np.roll(real, 32, axis=1), real), strict=True):
            positive = dab(image, BACKGROUND) > POSITIVE_OD
            side += [positive[y : y + 64, x : x + 64].mean() for y in range(0, 256, 64) for x in range(0, 256, 64)]
    actual = values(judge(shift, of=some), "shift")
    assert actual["DAB+ r, 64 µm"] == pytest.approx(np.corrcoef(*shares)[0, 1])
    assert actual["DAB+ error, 64 µm"] == pytest.approx(np.abs(np.subtract(*shares)).mean())


def test_mixed_blocks_are_those_of_both_tissues_in_truth() -> None:
    share = np.array([0.0, 0.05, 0.2, 0.5, 0.8, 0.95])
    real = np.full((128, 6 * 128, 3), 243, np.uint8)
    for i, part in enumerate(share):
        real[: round(128 * part), 128 * i : 128 * (i + 1)] = stained(0, 0, 0.6)
    less = real.copy()
    less[:16] = 243  # an eighth of every block that has so much
    field = Field("one", "a", lambda: (np.full_like(real, 120), real))
    actual = values(judge(Contender("less", lambda view: less), of=[field]), "less")
    rows = np.round(128 * share)
    expected = np.abs((np.maximum(rows - 16, 0) - rows) / 128)
    assert actual["DAB+ error, 128 µm"] == pytest.approx(expected.mean())
    assert actual["DAB+ error, mixed 128 µm"] == pytest.approx(expected[2:5].mean())
    assert actual["DAB+ r, mixed 128 µm"] == pytest.approx(1)


def test_the_densest_tenth_is_hand_computed() -> None:
    image = np.full((100, 100, 3), 243, np.uint8)
    image[:4], image[4:10], image[10:40] = stained(0, 0, 0.8), stained(0, 0, 0.5), stained(0, 0, 0.2)
    real = (
        judge(Contender("perfect", perfect), of=[Field("one", "a", lambda: (image, image))]).figures["perfect"][0].real
    )
    dark, brown = (float(dab(image, BACKGROUND)[y, 0]) for y in (0, 6))
    assert real.top_tenth == pytest.approx((4 * dark + 6 * brown) / 10, rel=1e-6)


def test_an_outline_is_a_background_unlike_the_constant_one() -> None:
    he = np.full((128, 256, 3), 243, np.uint8)
    he[:, :64] = 150
    some = [Field("one", "a", lambda: (he, he))]

    def grainy(view: FieldPixels) -> np.ndarray:
        return np.where(np.arange(128)[:, None, None] % 2, view.he + np.uint8(3), view.he - np.uint8(3))

    def lifted(view: FieldPixels) -> np.ndarray:
        return view.he + np.uint8(1)

    result = judge(*(Contender(f.__name__, f) for f in (perfect, grainy, lifted)), of=some)
    assert [values(result, name)["outline"] for name in ("perfect", "grainy", "lifted")] == pytest.approx([0, 0, 1])
    tissue_only = [Field("one", "a", lambda: (np.full_like(he, 120), he))]
    assert np.isnan(values(judge(Contender("c", perfect), of=tissue_only), "c")["outline"])


def test_streaks_are_seen_in_the_answer_alone() -> None:
    rng = np.random.default_rng(0)
    tissue = [np.full((256, 256, 3), 150, np.uint8) + rng.integers(0, 40, (256, 256, 1), np.uint8) for _ in range(4)]
    some = [Field(f"f{i}", str(i), lambda image=image: (image, image)) for i, image in enumerate(tissue)]

    def streaked(view: FieldPixels) -> np.ndarray:
        return view.real + np.uint8(8) * (np.arange(256) % 4 == 0)[:, None, None].astype(np.uint8)

    result = judge(Contender("plain", perfect), Contender("streaked", streaked), of=some)
    assert values(result, "streaked")["streaks"] > 1.5 * values(result, "plain")["streaks"]


def test_amounts_of_a_field_are_hand_computed() -> None:
    image = np.tile(stained(0.2, 0, 0), (100, 100, 1))
    image[:30] = stained(0, 0, 0.5)
    image[:8] = stained(0, 0, 0.8)
    field = Field("one", "a", lambda: (image, image))
    ruler = MeasureSettings(mpp=0.5, background=BACKGROUND)
    real = judge(Contender("perfect", perfect), of=[field], ruler=ruler).figures["perfect"][0].real
    dark, brown = (float(dab(image, BACKGROUND)[y, 0]) for y in (0, 20))
    assert (dark, brown) == pytest.approx((0.8, 0.5), abs=0.02)
    assert real.p90 == pytest.approx(brown)
    assert real.shares["field"][0] == pytest.approx(0.3)
    assert real.integrated == pytest.approx(0.25 * 100 * (8 * dark + 22 * brown), rel=0.02)  # OD·µm²


def test_blocks_are_of_tissue_and_not_of_pixels() -> None:
    field = fields(1)[0]
    shares = (
        judge(Contender("p", perfect), of=[field], ruler=MeasureSettings(0.5, BACKGROUND)).figures["p"][0].real.shares
    )
    assert {scale: len(share) for scale, share in shares.items()} == {"128 µm": 1, "64 µm": 4, "field": 1}


def test_a_field_smaller_than_a_block_leaves_only_that_scale_undefined() -> None:
    actual = values(judge(Contender("perfect", perfect), of=fields(3, (1, 1))), "perfect")
    assert np.isnan(actual["DAB+ r, 128 µm"])
    assert actual["DAB+ r, 64 µm"] == pytest.approx(1)


def test_a_map_of_positive_pixels_has_only_positive_area() -> None:
    exact = Contender("exact", lambda view: (dab(view.real, BACKGROUND) > POSITIVE_OD).astype(np.float32), "regressor")
    result = judge(exact, Contender("perfect", perfect))
    for metric, value in values(result, "exact").items():
        if metric.startswith("DAB+"):
            assert value == pytest.approx(values(result, "perfect")[metric], abs=1e-9)
        else:
            assert np.isnan(value), metric


def test_hematoxylin_is_compared_where_it_varies() -> None:
    def half_blank(view: FieldPixels) -> np.ndarray:
        return view.he if view.name == "f0" else np.full_like(view.he, 243)

    assert values(judge(Contender("c", half_blank)), "c")["H r to H&E"] == pytest.approx(1)


def test_two_runs_are_equal_to_the_last_bit() -> None:
    first, second = (judge(*baselines(np.array([200.4, 180, 170]))) for _ in range(2))
    assert json.dumps(plain(first)) == json.dumps(plain(second))


def test_intervals_come_from_groups() -> None:
    some = fields(6)
    apart = judge(Contender("shift", lambda v: np.roll(v.real, 32, 1)), of=some)
    together = [Field(field.name, "one slide", field.read) for field in some]
    one = judge(Contender("shift", lambda v: np.roll(v.real, 32, 1)), of=together)
    metric = "DAB+ r, 64 µm"
    assert apart.rows["shift"][metric].low < apart.rows["shift"][metric].value < apart.rows["shift"][metric].high
    assert one.rows["shift"][metric].value == apart.rows["shift"][metric].value
    assert np.isnan(one.rows["shift"][metric].low)


@pytest.mark.slow
def test_images_do_not_pile_up_in_memory() -> None:
    alive: list[weakref.ref] = []

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 2  # the field before this one
        he, real = painted(i, "pink", (1, 1)), painted(i, "brown", (1, 1))
        alive.extend(map(weakref.ref, (he, real)))
        return he, real

    result = judge(*baselines(None), of=[Field(str(i), str(i), functools.partial(read, i)) for i in range(8)])
    assert len(result.figures["the H&E itself"]) == len(alive) / 2 == 8


def test_distances_of_features_are_columns_and_see_each_image_once() -> None:
    seen: list[int] = []

    def features(image: np.ndarray) -> np.ndarray:
        seen.append(1)
        return image.reshape(-1, 3).mean(0).astype(np.float32)

    some, rows = fields(5), [Contender("perfect", perfect), Contender("map", lambda v: v.real[..., 0] / 255.0)]
    result = evaluate([*rows, *baselines(None)], some, ruler=RULER, features=features)
    assert len(seen) == 5 * (1 + 1 + 3)
    assert result.rows["perfect"]["FID"].value == pytest.approx(0, abs=1e-6)
    assert np.isnan(result.rows["map"]["KID"].value)
    he, real = (np.stack([f.read()[side].reshape(-1, 3).mean(0) for f in some]).astype(np.float32) for side in (0, 1))
    assert result.rows["the H&E itself"]["FID"].value == pytest.approx(fid.distances(he, real)[0])


class Wants64(IdentityGenerator):
    """A generator that refuses what a network would refuse."""

    multiple = 64

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        assert all(side % 64 == 0 for side in tiles.shape[1:3])
        return 255 - tiles


@pytest.mark.parametrize("shape", [(64, 128), (65, 127), (100, 30), (7, 200)])
def test_fields_of_any_size_can_be_stained(shape: tuple[int, int]) -> None:
    he = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(stain(Wants64(), he), 255 - he)


def test_what_is_grown_is_mirrored() -> None:
    seen: list[np.ndarray] = []

    class Keeps(Wants64):
        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            seen.append(tiles)
            return tiles

    he = np.random.default_rng(0).integers(0, 255, (60, 64, 3), dtype=np.uint8)
    stain(Keeps(), he)
    np.testing.assert_array_equal(seen[0][0, 60:], he[58:54:-1])


def test_a_folder_of_images_is_judged_as_what_made_them(tmp_path: Path) -> None:
    for field in fields():
        Image.fromarray(field.read()[0]).save(tmp_path / f"{field.name}.tif")
    contender = from_folder(tmp_path, ["f0", "f1", "f2", "f3"])
    rows = judge(contender, *baselines(None)).rows
    assert str(rows[tmp_path.name]) == str(rows["the H&E itself"])


def lacking(folder: Path) -> None:
    (folder / "f1.png").unlink()


def doubled(folder: Path) -> None:
    (folder / "f1.jpg").touch()


def broken(folder: Path) -> None:
    (folder / "f1.png").write_bytes(b"PNG?")


def small(folder: Path) -> None:
    Image.new("RGB", (9, 8)).save(folder / "f1.png")


def sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.full((256, 256), 40_000, np.uint16)).save(folder / "f1.png")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lacking, "lacks 1 of 2 images, first missing: f1.png"),
        (doubled, "the same stem"),
        (broken, r"f1\.png cannot be decoded"),
        (sixteen_bits, "8 bits per channel"),
        (small, "9 × 8 px but its field is 256 × 256"),
    ],
)
def test_a_bad_folder_of_images_is_refused(tmp_path: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    for field in fields(2):
        Image.fromarray(field.read()[0]).save(tmp_path / f"{field.name}.png")
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        judge(from_folder(tmp_path, ["f0", "f1"]), of=fields(2))


def test_fields_of_one_name_cannot_be_compared_with_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="two fields are named a"):
        from_folder(tmp_path, ["a", "a"])


def test_mean_colour_is_that_of_all_pixels() -> None:
    images = [np.full((10, 10, 3), 10, np.uint8), np.full((10, 30, 3), (50, 90, 130), np.uint8)]
    np.testing.assert_allclose(mean_colour(iter(images)), [40, 70, 100])


def test_baselines_are_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    view = FieldPixels("v", *rng.integers(0, 255, (2, 80, 60, 3), dtype=np.uint8))
    plain_colour, he, blurred, shifted = (c.answer(view) for c in baselines(np.array([9.6, 20, 30])))
    assert (plain_colour == (10, 20, 30)).all()
    assert plain_colour.shape == view.real.shape
    assert he is view.he
    np.testing.assert_array_equal(shifted[25:], view.real[:-25])
    assert blurred.std() < view.real.std() / 10
    assert blurred.mean() == pytest.approx(view.real.mean(), abs=3)


def test_the_table_has_dashes_where_a_figure_is_undefined() -> None:
    result = judge(*baselines(np.array([200.0, 190, 180])))
    lines = table(result.rows).splitlines()
    assert [line.count("|") for line in lines] == [len(METRICS) + 2] * (2 + 4)
    row = next(line for line in lines if line.startswith("| mean stain colour |"))
    assert row.split(" | ")[1] == "–"
    assert "nan" not in table(result.rows)


def write_run(folder: Path, kind: str = "ceff", mpp: float = 1.0) -> Path:
    """What a training leaves, with random weights."""
    import torch
    from safetensors.torch import save_file

    from wsi_stain.config.model import GeneratorConfig
    from wsi_stain.nn.generator import Generator

    torch.manual_seed(0)
    folder.mkdir()
    shape = {"channels": 4, "blocks": 4}
    save_file(Generator(GeneratorConfig(**shape)).state_dict(), folder / "generator.safetensors")
    config = {
        "pairs": "p",
        "run": str(folder),
        "input": {"stain": "H&E", "mpp": mpp},
        "output": {"stain": "CAM5.2", "background": [240, 241, 242]},
        "generator": {**shape, "kind": kind},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_is_judged_without_packing_it(tmp_path: Path) -> None:
    from wsi_stain.nn.inference import TorchGenerator, load_generator

    run = write_run(tmp_path / "first")
    bundle = TrainingRun.open(run).as_bundle()
    assert (bundle.name, bundle.mpp, bundle.background) == ("first", 1.0, (240, 241, 242))
    he = painted(0, "pink", (2, 2))
    expected = TorchGenerator(load_generator(bundle.config.generator, run / "generator.safetensors"), "cpu")(he[None])
    np.testing.assert_array_equal(from_bundle(bundle, "cpu").answer(FieldPixels("v", he, he)), expected[0])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six fields of one slide in a row, two of them for training."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["he", "ihc", "slide_id", "split", "x", "y"])
        for i in range(6):
            for stain in ("pink", "brown"):
                Image.fromarray(painted(i, stain, (2, 2))).save(folder / f"{stain}{i}.png")
            table.writerow([f"pink{i}.png", f"brown{i}.png", "A", "train" if i < 2 else "test", 128 * i, 0])
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `wsi-stain evaluate`."""
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_the_command_judges_a_model_and_a_folder_of_its_images_alike(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    for i in range(2, 6):
        Image.open(pairs / f"pink{i}.png").save(tmp_path / "theirs" / f"pink{i}.tif")
    out = tmp_path / "out"
    code, printed, errors = run(
        capsys, "--model", "identity", "--against", tmp_path / "theirs", "--pairs", pairs, "--mpp", 1, "-o", out
    )
    assert code == 0, errors
    assert "4/4 fields" in errors
    assert printed.strip() == (out / "table.md").read_text(encoding="utf-8").strip()
    actual = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert actual["rows"]["theirs"] == actual["rows"]["identity"] == actual["rows"]["the H&E itself"]
    assert list(actual["rows"])[2:] == [
        "mean stain colour", "the H&E itself", "real stain blurred, σ = 16 px", "real stain shifted by 25 px"
    ]  # fmt: skip
    assert (actual["split"], actual["pairs"], actual["groups"], actual["model"]) == ("test", 4, 2, "identity")
    assert actual["unit"] == "block of 2 × 2 neighbouring fields"


def test_a_report_is_never_written_over(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.json").write_text("mine")
    code, _, errors = run(capsys, "--model", "identity", "--pairs", pairs, "--mpp", 1, "-o", tmp_path)
    assert code == 1
    assert "already holds a report" in errors
    assert (tmp_path / "metrics.json").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


def test_a_run_and_a_regressor_can_be_named(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_regressor(run: Path, device: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda he: (he[..., 0] / 255).astype(np.float32)

    module = types.SimpleNamespace(load_regressor=load_regressor)
    monkeypatch.setitem(sys.modules, "wsi_stain.train.regressor", module)
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "direct", "unet")
    code, printed, errors = run(
        capsys, "--run", first, "--regressor", second, "--pairs", pairs, "--device", "cpu", "-o", tmp_path / "out"
    )
    assert code == 0, errors
    names = [line.split(" | ")[0].strip("| ") for line in printed.splitlines()[2:]]
    assert names[:3] == ["first", "direct (DAB+ only)", "mean stain colour"]
    actual = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert actual["background"] == [240, 241, 242]
    assert actual["rows"]["direct (DAB+ only)"]["SSIM"]["value"] is None


def test_without_a_scale_or_a_training_split_the_command_says_so(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(capsys, "--model", "identity", "--pairs", pairs)
    assert code == 2
    assert "--mpp" in errors
    rows = (pairs / "pairs.csv").read_text().splitlines()
    (pairs / "pairs.csv").write_text("\n".join(row for row in rows if "train" not in row))
    code, printed, errors = run(capsys, "--model", "identity", "--pairs", pairs, "--mpp", 1)
    assert code == 0
    assert "no training split" in errors
    assert "mean stain colour" not in printed


def test_models_of_different_scales_are_not_judged_on_the_same_pairs(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of_half = write_run(tmp_path / "half", mpp=0.5)
    code, _, errors = run(capsys, "--model", DEFAULT, "--run", run_of_half, "--pairs", pairs)
    assert code == 2
    assert f"{DEFAULT} at 1.0 µm/px and half at 0.5 µm/px" in errors


def test_rows_of_one_name_are_told_apart(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / side / "identity" for side in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        for i in range(2, 6):
            Image.open(pairs / f"brown{i}.png").save(folder / f"pink{i}.png")
    options = [x for folder in folders for x in ("--against", folder)]
    code, printed, _ = run(capsys, "--model", "identity", *options, "--pairs", pairs, "--mpp", 1)
    assert code == 0
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:5]] == [
        "| identity", "| identity (2)", "| identity (3)"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_shipped_model_beats_the_he_itself_on_its_own_slide(data: Path) -> None:
    from wsi_stain.pairs.pair import find_pairs, read_pair

    bundle = Bundle.open(DEFAULT)
    chosen = find_pairs(data / "pairs" / "cam52", "val")[:3]
    some = [Field(p.he.stem, p.he.stem, functools.partial(read_pair, p)) for p in chosen]
    result = judge(from_bundle(bundle, "cpu"), *baselines(None), of=some, ruler=MeasureSettings(1.0, bundle.background))
    model, he = (values(result, row) for row in (bundle.name, "the H&E itself"))
    assert model["DAB+ error, 128 µm"] < 0.6 * he["DAB+ error, 128 µm"]
    assert model["DAB histogram divergence"] < 0.3 * he["DAB histogram divergence"]
