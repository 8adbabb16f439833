"""A model against the real stain of whole registered slides, block by block."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders.cases import ALL_ONE, shifted, write_case, write_scan
from builders.sections import UM, MadePair, made_pair, rgb
from click.testing import CliRunner, Result

from wsi_stain.cli import group
from wsi_stain.evaluate.figures import FieldPixels, MeasureSettings, Target
from wsi_stain.evaluate.slides import padded
from wsi_stain.geometry import Box, Size
from wsi_stain.pairing.case import open_case
from wsi_stain.pairing.held import held_blocks

MIXED = (0.46, 0.635, 0.535)
"""Hematoxylin and DAB in equal parts: there is structure to register, and brown to compare."""


@pytest.fixture(scope="module")
def pair() -> MadePair:
    return made_pair(bend_um=100.0)


@pytest.fixture
def slides(pair: MadePair, tmp_path: Path) -> tuple[Path, Path]:
    he, ihc = (write_scan(tmp_path / f"{n}.tif", rgb(p, MIXED), UM) for n, p in (("he", pair.he), ("ihc", pair.ihc)))
    return he, ihc


def evaluated(case: Path, output: Path) -> Result:
    return CliRunner().invoke(
        group, ["evaluate", "--slides", str(case), "--model", "identity", "--device", "cpu", "-o", str(output)]
    )


@pytest.mark.slow
def test_the_whole_slides_are_compared_where_they_correspond(pair: MadePair, tmp_path: Path) -> None:
    image = rgb(pair.he, MIXED)  # the second slide is a copy, 40 px further down and 24 px further left
    copy = np.roll(image, (40, -24), (0, 1))
    he, ihc = (write_scan(tmp_path / f"{n}.tif", pixels, UM) for n, pixels in (("he", image), ("ihc", copy)))
    case = write_case(tmp_path / "case", he, ihc, shifted(40 * UM, -24 * UM), mpp=UM)
    result = evaluated(case, tmp_path / "report")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "report" / "metrics.json").read_text())
    figures = content["rows"]["identity"]
    assert figures["DAB+ r, 128 µm"]["value"] > 0.99  # the model copies the H&E; its output is a JPEG
    assert figures["DAB+ error, 128 µm"]["value"] < 0.02
    assert figures["SSIM"]["value"] is None
    assert content["unit"] == "block of 2 × 2 neighbouring fields"
    page = (tmp_path / "report" / "report.html").read_text()
    assert "map of identity" in page
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["metrics.json", "report.html", "table.md"]


@pytest.mark.slow
def test_only_blocks_with_tissue_in_both_and_a_registration_that_holds_count(
    pair: MadePair, slides: tuple[Path, Path], tmp_path: Path
) -> None:
    case = write_case(tmp_path / "case", *slides, pair.truth, mpp=UM)
    with open_case(case) as opened:
        held = held_blocks(opened, 128.0)
    assert held.shape == (40, 40)
    share = pair.he.tissue.reshape(40, 16, 40, 16).mean((1, 3))
    assert not held[share < 0.2].any()
    centres = (np.argwhere(np.ones((40, 40))) + 0.5) * 128.0
    at = np.floor(pair.truth(centres) / UM).astype(int).reshape(40, 40, 2)
    missing = ((at > 110) & (at < 170)).all(-1)  # the piece that the second slide lacks
    assert missing.sum() > 2
    assert not held[missing].any()
    assert held[share > 0.9].mean() > 0.7


def test_slides_that_are_not_where_the_transform_says_are_not_compared(
    slides: tuple[Path, Path], tmp_path: Path
) -> None:
    case = write_case(tmp_path / "case", *slides, shifted(0, 0), mpp=UM, fragments=ALL_ONE)
    with open_case(case) as opened:
        assert held_blocks(opened, 128.0).mean() < 0.1


def test_pixels_that_do_not_count_change_no_figure() -> None:
    rng = np.random.default_rng(0)
    he, real, answer = rng.integers(0, 256, (3, 256, 256, 3), np.uint8)
    kept = np.zeros((256, 256), bool)
    kept[:128, 128:] = True
    figures = [Target(FieldPixels("f", he, real, kept), MeasureSettings()).compare(answer)]
    real[~kept], answer[~kept] = 0, 255
    figures += [Target(FieldPixels("f", he, real, kept), MeasureSettings()).compare(answer)]
    for side in ("real", "generated"):
        one, other = (getattr(f, side) for f in figures)
        assert {k: v.tolist() for k, v in one.shares.items()} == {k: v.tolist() for k, v in other.shares.items()}
        assert [len(v) for v in one.shares.values()] == [1, 4, 1]
        assert (one.p90, one.integrated, one.top_tenth) == (other.p90, other.integrated, other.top_tenth)
    np.testing.assert_array_equal(figures[0].overlap, figures[1].overlap)


def test_a_field_at_the_edge_repeats_the_last_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    read = padded(lambda box: image[box.slices()], Size(2, 2))
    np.testing.assert_array_equal(read(Box(0, 1, 3, 3))[2, 1], image[1, 1])


def test_a_folder_that_is_no_case_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    result = evaluated(tmp_path, tmp_path / "report")
    assert result.exit_code != 0
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_combined_is_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke
    for extra, message in ((["--slides", "x"], "--slides needs --model and -o"), ([], "pass --pairs, or --slides")):
        result = run(group, ["evaluate", *extra])
        assert message in str(result.exception) + result.output
