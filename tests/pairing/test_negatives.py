"""Pairs from tissue that is known to be negative: a counterstain without DAB, added to a table of pairs."""

from pathlib import Path

import numpy as np
import pytest

from tests.builders import he
from tests.builders.pairs import write_pairs
from tests.builders.tiffs import write_tiff
from wsi_stain.cli import main
from wsi_stain.measure.deconvolution import dab, stain_densities
from wsi_stain.pairs.pair import find_pairs, read_pair


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    tile = he.tile(256)
    return write_pairs(tmp_path / "pairs", [(tile, tile)] * 2)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Tissue of 512 × 256 px at 1 µm/px on the left, glass on the right."""
    pixels = np.full((512, 512, 3), 243, np.uint8)
    pixels[:, :256] = np.concatenate([he.tile(256, seed=1, strength=1.5), he.tile(256, seed=2, strength=1.5)])
    return write_tiff(tmp_path / "negative.tif", pixels, tile=(256, 256), resolution=(10000, 10000), resolutionunit=3)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["pairs", "negatives", *map(str, arguments)])
    return int(end.value.code or 0)


def test_negative_tissue_becomes_pairs_with_nuclei_and_without_dab(pairs, slide):
    before = find_pairs(pairs)
    assert run(slide, pairs, "--tile", 256) == 0
    added = [pair for pair in find_pairs(pairs, "train") if pair.slide_id == "negative"]
    assert [pair for pair in find_pairs(pairs) if pair.slide_id != "negative"] == before
    assert len(added) == 2, "glass is left out"
    for pair in added:
        image, stain = read_pair(pair)
        assert dab(stain, (247, 247, 247)).max() < 0.05
        own, drawn = stain_densities(image, (243, 243, 243))[..., 0], stain_densities(stain, (247, 247, 247))[..., 0]
        assert np.corrcoef(own.ravel(), drawn.ravel())[0, 1] > 0.9


def test_only_the_region_is_added_and_its_place_is_kept(pairs, slide):
    table = pairs / "pairs.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header + ",x,y", *(row + ",," for row in rows)]))
    assert run(slide, pairs, "--tile", 256, "--region", "0,256,512,256") == 0
    (added,) = [pair for pair in find_pairs(pairs) if pair.slide_id == "negative"]
    assert (added.x, added.y) == (0, 256)
    np.testing.assert_array_equal(read_pair(added)[0], he.tile(256, seed=2, strength=1.5))


def test_tiles_are_not_added_twice_and_only_to_pairs(pairs, slide, tmp_path, capsys):
    assert run(slide, pairs, "--tile", 256) == 0
    table = (pairs / "pairs.csv").read_bytes()
    assert run(slide, pairs, "--tile", 256) == 1
    assert "holds tiles of negative already" in capsys.readouterr().err
    assert (pairs / "pairs.csv").read_bytes() == table
    assert run(slide, tmp_path, "--tile", 256) == 1
    assert "has no pairs.csv" in capsys.readouterr().err


def test_a_region_without_tissue_is_refused(pairs, slide, capsys):
    table = (pairs / "pairs.csv").read_bytes()
    assert run(slide, pairs, "--tile", 256, "--region", "256,0,256,512") == 1
    assert "no tile of 256 px has enough tissue" in capsys.readouterr().err
    assert (pairs / "pairs.csv").read_bytes() == table


def test_tiles_have_the_pixel_size_of_the_pairs(pairs, slide, capsys):
    table = pairs / "pairs.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header + ",mpp", *(row + ",0.5" for row in rows)]))
    assert run(slide, pairs, "--tile", 256) == 1
    assert "was cut at 0.5 µm/px, but --mpp is 1" in capsys.readouterr().err
    table.write_text("\n".join([header + ",mpp", *(row + ",1.0" for row in rows)]))
    assert run(slide, pairs, "--tile", 256) == 0
    assert {pair.mpp for pair in find_pairs(pairs)} == {1.0}


def test_a_coarser_slide_is_enlarged_only_on_request(pairs, slide):
    assert run(slide, pairs, "--tile", 256, "--mpp", 0.5) == 1
    assert run(slide, pairs, "--tile", 256, "--mpp", 0.5, "--allow-upsampling") == 0
