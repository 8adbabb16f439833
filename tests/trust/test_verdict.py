"""Verdicts on drawn tiles, and on real slides where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
from builders.he import tile
from skimage.color import rgb_from_hed

from wsi_stain.config.trust import Figure
from wsi_stain.geometry import Box
from wsi_stain.model.bundle import Bundle
from wsi_stain.slide.slide import Slide
from wsi_stain.tissue.mask import everything
from wsi_stain.trust.portrait import portrait, tile_figures
from wsi_stain.trust.sample import TILES, places, tissue_tiles
from wsi_stain.trust.training import training_figures
from wsi_stain.trust.verdict import judge

BACKGROUND = (243, 243, 243)
H, E, DAB = rgb_from_hed
GREY, CYAN = (0.577, 0.577, 0.577), (0.85, 0.45, 0.25)


def verdict(tiles, trained=None):
    return judge(portrait(tiles, BACKGROUND, 1.0), trained)


def tiles(**options):
    return [tile(seed=seed, **options) for seed in range(4)]


def test_drawn_h_and_e_is_h_and_e() -> None:
    assert verdict(tiles()).level == "ok"


@pytest.mark.parametrize(
    ("vectors", "word"),
    [((H, DAB), "brown"), ((H, GREY), "grey"), ((H, CYAN), "blue"), ((H, H), "no pink"), ((CYAN, CYAN), "blue")],
    ids=["hematoxylin and DAB", "silver", "blue ground", "hematoxylin alone", "cyan"],
)
def test_another_stain_is_bad_and_named(vectors, word) -> None:
    judged = verdict(tiles(vectors=vectors, strength=2.5))
    assert judged.level == "bad"
    assert word in "; ".join(judged.reasons)


def test_out_of_focus_is_bad() -> None:
    judged = verdict(tiles(blur=2.5))
    assert judged.level == "bad"
    assert "out of focus" in judged.reasons[0]
    assert verdict(tiles(blur=0.3)).level == "ok"


def test_a_slide_without_stain_cannot_be_judged() -> None:
    judged = verdict([np.full((256, 256, 3), 243, np.uint8)])
    assert judged.level == "unlike"
    assert "too little" in judged.reasons[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 2.0}, "more strongly stained than"),
        ({"radius": 7.0}, "larger nuclei"),
    ],
    ids=["overstained", "scale"],
)
def test_what_differs_from_the_training_tiles_is_unlike_them(options, words) -> None:
    spread = np.linspace(0.95, 1.3, 6)  # no two fields of a real slide are equally strong
    images = [tile(512, seed=i, strength=s, radius=3 * s) for i, s in enumerate(spread, start=10)]
    n, trained = training_figures([np.full((512, 512, 3), 243, np.uint8), *images], 1.0)
    assert n == 24
    assert verdict(tiles(), trained).level == "ok"
    judged = verdict(tiles(**options), trained)
    assert judged.level == "unlike"
    assert words in "; ".join(judged.reasons)


def test_the_radius_of_nuclei_scales_with_the_pixel_size() -> None:
    radii = [tile_figures(tile(radius=r), BACKGROUND, 1.0)["nucleus_um"] for r in (3.0, 6.0)]
    assert radii[1] / radii[0] == pytest.approx(2, rel=0.25)
    assert tile_figures(tile(radius=6.0), BACKGROUND, 0.5)["nucleus_um"] == pytest.approx(radii[1] / 2, rel=0.15)


def test_one_spoilt_tile_does_not_change_the_verdict() -> None:
    ink = np.zeros((256, 256, 3), np.uint8)
    assert verdict([*tiles(), ink]).level == "ok"


def test_figures_out_of_the_range_by_little_are_accepted() -> None:
    figures = portrait(tiles(), BACKGROUND, 1.0)
    value = figures["density"]
    near = Figure("density", value + 0.005, value + 0.05, value + 0.1)  # below by 5 % of the range
    far = Figure("density", value + 0.02, value + 0.05, value + 0.1)
    assert judge(figures, (near,)).level == "ok"
    assert judge(figures, (far,)).level == "unlike"
    assert "is paler than the training slides" in judge(figures, (far,)).reasons[0]


def test_a_slide_that_is_enlarged_lacks_detail() -> None:
    figures = portrait(tiles(), BACKGROUND, 1.0)
    assert judge(figures, None, growth=1.1).level == "ok"
    enlarged = judge(figures, None, growth=2.1)
    assert enlarged.level == "unlike"
    assert enlarged.reasons == ("is enlarged 2.1-fold, so it lacks the detail of the training slides",)


def test_the_shipped_model_knows_its_training_tiles() -> None:
    trust = Bundle.open().trust
    assert trust is not None
    assert {"density", "sharpness", "nucleus_um"} <= {figure.name for figure in trust.figures}
    assert all(figure.low <= figure.middle <= figure.high for figure in trust.figures)
    assert trust.held_out is not None
    assert all(scale.bins[-1].most == 1 for scale in trust.held_out.scales)


def test_sampled_tiles_are_the_same_in_every_run_and_lie_in_the_region(tmp_path) -> None:
    from builders.conversions import write_slide

    slide = write_slide(tmp_path / "he.tif", np.tile(tile(1024), (2, 2, 1)))
    with Slide.open(slide) as opened:
        view, region = opened.at(0.5), Box(100, 200, 1500, 1900)
        boxes = [box for box, _ in tissue_tiles(view, everything(opened.size), BACKGROUND, region)]
        again = [box for box, _ in tissue_tiles(view, everything(opened.size), BACKGROUND, region)]
        everywhere = places(view, None)
    assert boxes == again
    assert len(boxes) == len(set(boxes)) == TILES
    assert all(region.contains(box) for box in boxes)
    assert len(everywhere) == 64


REAL = {
    "slides/CMU-1-Small-Region.svs": (None, "not bad"),
    "slides/whole_pancreas_HE.tif": (1.0, "ok"),
    "slides/whole_stomach_HE.tif": (None, "not bad"),
    "slides/ihc_CRC-AI-15.tif": (0.5, "bad"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_slides(data: Path, name: str) -> None:
    from wsi_stain.conversion.input_check import examine
    from wsi_stain.conversion.request import ConvertRequest
    from wsi_stain.conversion.survey import Survey

    mpp, expected = REAL[name]
    judged = examine(Survey.of(ConvertRequest(data / name, mpp=mpp, device="cpu", precision="fp32"), source=("0", 1)))
    assert (judged.level == expected) if expected != "not bad" else (judged.level != "bad"), judged
