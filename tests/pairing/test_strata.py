"""Strata of tiles from annotated areas."""

import csv
import json
from fractions import Fraction
from pathlib import Path

import cv2
import pytest
from builders.registrations import registers
from builders.sections import UM, made_pair, rgb
from builders.slides import write_svs

from wsi_stain.errors import MaskError, OutputError
from wsi_stain.pairing import make as module
from wsi_stain.pairing.make import make
from wsi_stain.pairing.request import PairsRequest
from wsi_stain.pairing.strata import strata_of, stratum
from wsi_stain.pairs.pair import find_pairs


def write_areas(path: Path, *areas: tuple[object, int, int, int, int]) -> Path:
    """Rectangles (class, x0, y0, x1, y1) as QuPath exports them."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {"objectType": "annotation"} | ({"classification": name} if name else {}),
        }
        for name, x0, y0, x1, y1 in areas
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_a_tile_belongs_to_the_class_that_covers_most_of_it(tmp_path: Path) -> None:
    areas = strata_of(
        write_areas(
            tmp_path / "a.geojson",
            ({"name": "Tumor"}, 0, 0, 100, 1000),
            ({"names": ["Stroma", "Dense"]}, 90, 0, 160, 1000),
            ({"name": "Ignore*"}, 200, 0, 400, 1000),
            ("", 200, 0, 400, 1000),
        )
    )
    assert list(areas) == ["Tumor", "Stroma: Dense"]
    # tiles of 40 px: 80-120 is half Tumor and three quarters Stroma; 160 and further have no class
    words = [stratum(areas, 3, column, Fraction(40)) for column in range(6)]
    assert words == ["Tumor", "Tumor", "Stroma: Dense", "Stroma: Dense", "", ""]
    assert stratum(areas, 0, 2, Fraction(165, 2)) == ""
    assert stratum({}, 0, 0, Fraction(40)) == ""


def test_areas_without_a_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="has no area with a class; set the class"):
        strata_of(write_areas(tmp_path / "a.geojson", ("", 0, 0, 9, 9), ({"name": "Ignore*"}, 0, 0, 9, 9)))


@pytest.mark.slow
def test_the_table_holds_what_training_and_people_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made_pair(bend_um=0.0)
    monkeypatch.setattr(module, "register", registers(pair.truth, "register"))
    # H&E at 6 µm/px: tiles of 64 px at 8 µm/px have a side of 85.3 level-0 px
    he = write_svs(tmp_path / "he.svs", cv2.resize(rgb(pair.he), (853, 853)), mpp=6.0)
    ihc = write_svs(tmp_path / "ihc.svs", rgb(pair.ihc), mpp=UM)
    areas = write_areas(tmp_path / "a.geojson", ({"name": "left"}, 0, 0, 430, 900))
    request = PairsRequest(he, ihc, tmp_path / "case", mpp=UM, tile=64, strata=areas, workers=0, least_confidence=0.0)
    result = make(request)
    with (tmp_path / "case" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == (
        "he,ihc,slide_id,split,x,y,side,mpp,patient_id,misalignment_px,confidence,dab_fraction,tissue_fraction,stratum"
    )
    assert len(rows) == result.content["tiles"] > 8
    for row in rows:
        tile_row, column = (int(n) for n in Path(row["he"]).stem.split("_"))
        assert (int(row["x"]), int(row["y"])) == (round(column * 256 / 3), round(tile_row * 256 / 3))
        assert int(row["side"]) == 85
        assert row["stratum"] == ("left" if column < 5 else "")  # 5 tiles are 426.7 px wide
        assert 0 <= float(row["confidence"]) <= 1
        assert 0 <= float(row["misalignment_px"]) <= 16 / UM  # never NaN, though no confidence is required
        assert 0 <= float(row["dab_fraction"]) <= 1
        assert 0.3 <= float(row["tissue_fraction"]) <= 1
    assert {p.stratum for p in find_pairs(tmp_path / "case")} == {"left", ""}
    write_areas(areas, ({"name": "right"}, 430, 0, 900, 900))
    with pytest.raises(OutputError, match="other slides or settings"):
        make(request)
