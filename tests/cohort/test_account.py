"""The figures and thumbnails of a finished slide."""

import base64
from fractions import Fraction

import imagecodecs
import numpy as np
import pytest
from builders.cohorts import request_of

from wsi_stain import phantom
from wsi_stain.cohort.account import THUMBNAIL_PX, account_of, outlined, positive_area
from wsi_stain.cohort.check import checked
from wsi_stain.cohort.request import to_convert
from wsi_stain.conversion.engine import convert
from wsi_stain.files import record
from wsi_stain.geometry import Size
from wsi_stain.tissue.mask import TissueMask, everything

BACKGROUND = (243, 243, 243)
BROWN, BLUE = (120, 70, 30), (110, 110, 170)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_positive_area_is_the_brown_share_of_the_tissue(share):
    stain = np.full((600, 400, 3), BACKGROUND, np.uint8)
    stain[:, :200] = BLUE
    stain[: round(600 * share), :200] = BROWN
    stain[:10, 300:] = BROWN  # outside the tissue: dirt
    mask = TissueMask(np.array([[True, False]]), Fraction(200), Size(600, 400))
    assert positive_area(stain, mask, BACKGROUND) == pytest.approx(share, abs=0.01)


def test_without_tissue_there_is_no_positive_area():
    mask = TissueMask(np.zeros((1, 1), bool), Fraction(100), Size(100, 100))
    assert positive_area(np.full((100, 100, 3), BROWN, np.uint8), mask, BACKGROUND) is None


def test_what_is_no_tissue_is_bleached():
    he = np.full((60, 80, 3), (200, 60, 120), np.uint8)
    mask = TissueMask(np.array([[True, False]]), Fraction(40), Size(60, 80))
    shown = outlined(he, mask)
    assert (shown[5:-5, 5:35] == he[5:-5, 5:35]).all()
    assert (shown[:, 45:].astype(int).sum(-1) > he[:, 45:].astype(int).sum(-1)).all()


def decoded(text: str) -> np.ndarray:
    return imagecodecs.jpeg8_decode(base64.b64decode(text))


def test_thumbnails_show_the_slide_its_tissue_and_its_stain(tmp_path):
    phantom.write_slide(tmp_path / "s.svs", size=Size(900, 600), mpp=2.0)
    request = request_of(tmp_path / "s.svs", tmp_path, mask="auto")
    row = checked(request)[0]
    requested = to_convert(request, row, 0)
    convert(requested)
    actual = account_of(row, requested)
    he, mask, stain = (decoded(actual["thumbnails"][key]) for key in ("he", "mask", "stain"))
    assert he.shape == mask.shape == (THUMBNAIL_PX, 128, 3)
    assert max(stain.shape) == THUMBNAIL_PX
    assert np.abs(stain.astype(int) - he).mean() < 8, "identity: the stain is the H&E"
    assert actual["positive"] is None, "identity stains nothing"
    assert actual["size_px"] == [900, 600]
    assert actual["mask_file"] == "s.identity.tissue.geojson"
    assert sum(map(len, actual["thumbnails"].values())) < 60_000


def test_what_the_record_warns_of_is_in_the_account(tmp_path):
    phantom.write_slide(tmp_path / "s.svs", size=Size(300, 300), mpp=2.0)
    request = request_of(tmp_path / "s.svs", tmp_path)
    row = checked(request)[0]
    requested = to_convert(request, row, 0)
    result = convert(requested)
    seams = {"verdict": "fail", "reasons": ["steps at tile lines"]}
    record.write(record.path_of(result.output), result.record | {"unreadable": [[0, 0, 9, 9]], "seams": seams})
    actual = account_of(row, requested)
    assert actual["seams"] == seams
    assert actual["warnings"] == [
        "1 tile of the slide could not be read; background was written instead",
        "seams: steps at tile lines",
    ]
    assert everything(Size(300, 300)).array.all()
