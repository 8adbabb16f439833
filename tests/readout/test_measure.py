"""The read-out against hand-made slides of known densities and against a naive twin that holds the whole slide."""

import csv
import json
import math

import numpy as np
import pytest
import tifffile
from builders.conversions import request_of, write_slide
from builders.hdab import paint, patchwork
from builders.slides import damage, write_svs
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.config.trust import ErrorBin, ErrorScale, HeldOut
from wsi_stain.conversion.engine import convert
from wsi_stain.errors import BundleError, ConfigError, MaskError, OutputError
from wsi_stain.measure.stains import Stains
from wsi_stain.readout import interval as intervals
from wsi_stain.readout.interval import Interval
from wsi_stain.readout.measure import measure
from wsi_stain.readout.request import MeasureRequest, Thresholds
from wsi_stain.readout.work import Sums

BACKGROUND = (240.0, 240.0, 240.0)


def request(slide, output, **fields):
    known = {"mask": "none", "stains": "ruifrok", "background": BACKGROUND, "workers": 0}
    return MeasureRequest(slide, output, **{**known, **fields})


def rows_of(folder, name):
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def total(rows, name):
    return sum(float(row[name]) for row in rows)


def test_a_made_slide_has_the_figures_computed_by_hand(tmp_path) -> None:
    # 0.5 µm/px: a block of 64 µm is 128 px. A quarter has DAB 0.2, an eighth 0.5, an eighth 0.8, the rest none.
    dab = np.zeros((512, 512))
    dab[:256, :256], dab[256:, :128], dab[256:, 128:256] = 0.2, 0.5, 0.8
    slide = write_slide(tmp_path / "made.tif", paint(0 * dab, dab))
    result = measure(request(slide, tmp_path / "out"))
    figures = result.content["figures"]["slide"]
    assert figures["area_um2"] == figures["tissue_um2"] == 256**2
    assert figures["dab_positive"] == 0.5
    assert (figures["dab_weak"], figures["dab_moderate"], figures["dab_strong"]) == (0.25, 0.125, 0.125)
    assert figures["h_score"] == 100 * (0.25 + 2 * 0.125 + 3 * 0.125)
    assert figures["dab_mean"] == pytest.approx(0.2 / 4 + 0.5 / 8 + 0.8 / 8, abs=1e-3)
    assert figures["dab_p90"] == pytest.approx(0.8, abs=3e-3)  # painted in whole grey levels
    assert figures["dab_integrated"] == pytest.approx(figures["dab_mean"] * 256**2)
    assert figures["hematoxylin_mean"] == pytest.approx(0, abs=2e-3)
    blocks = {(float(r["x"]), float(r["y"])): float(r["dab_positive"]) for r in rows_of(result.folder, "blocks_64um")}
    assert len(blocks) == 16
    assert blocks[0, 0] == blocks[128, 384] == 1
    assert blocks[256, 0] == blocks[384, 384] == 0


@pytest.mark.parametrize(("mpp", "at"), [(0.5, None), (0.37, None), (0.5, 1.1)])
def test_it_agrees_with_a_naive_twin_of_the_whole_slide(tmp_path, mpp, at) -> None:
    image = paint(*patchwork(700, 900))
    slide = write_slide(tmp_path / "patches.tif", image)
    result = measure(request(slide, tmp_path / "out", mpp=mpp, at=at))
    from wsi_stain.geometry import Box
    from wsi_stain.slide.slide import Slide

    with Slide.open(slide, mpp=mpp) as opened:
        view = opened.at(at or mpp)
        pixels, side = view.read(Box.of(view.size)), at or mpp
    hematoxylin, dab = Stains(BACKGROUND).densities(pixels)
    figures = result.content["figures"]["slide"]
    assert figures["dab_positive"] == pytest.approx((dab > 0.15).mean())
    assert figures["dab_mean"] == pytest.approx(dab.mean(dtype=float), rel=1e-5)
    assert figures["hematoxylin_mean"] == pytest.approx(hematoxylin.mean(dtype=float), rel=1e-5)
    assert figures["dab_p90"] == pytest.approx(np.percentile(dab, 90), abs=1e-3)
    for um in (64, 128, 256):
        rows = rows_of(result.folder, f"blocks_{um}um")
        assert total(rows, "dab_integrated") == pytest.approx(figures["dab_integrated"], rel=1e-5)
        assert total(rows, "tissue_um2") == pytest.approx(dab.size * side**2, rel=1e-5)
    # one block in the middle, cut out by hand
    edge = [round(i * 64 / side) for i in range(3)]
    cut = dab[edge[1] : edge[2], edge[1] : edge[2]]
    row = next(
        r
        for r in rows_of(result.folder, "blocks_64um")
        if round(float(r["x"]) * mpp / side) == round(float(r["y"]) * mpp / side) == edge[1]
    )
    assert float(row["dab_positive"]) == pytest.approx((cut > 0.15).mean(), abs=1e-6)
    assert float(row["dab_p90"]) == pytest.approx(np.percentile(cut, 90), abs=2e-3)


@pytest.mark.slow
def test_tables_do_not_depend_on_the_number_of_threads(tmp_path) -> None:
    slide = write_slide(tmp_path / "patches.tif", paint(*patchwork(2300, 2500)))
    for workers in (0, 3):
        measure(request(slide, tmp_path / str(workers), workers=workers, mask="auto"))
    names = ["blocks_64um.csv", "blocks_256um.csv", "regions.csv", "heatmap.geojson", "map.ome.tiff", "report.html"]
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name


def test_empty_background_within_detected_tissue_does_not_count(tmp_path) -> None:
    dab = np.zeros((1024, 1024))
    dab[208:800, 208:800] = 0.3  # whole cells of 8 µm
    dab[400:608, 400:608] = 0  # a lumen of 100 µm, which the mask fills
    slide = write_slide(tmp_path / "gland.tif", paint(0 * dab, dab))
    figures = measure(request(slide, tmp_path / "out", mask="auto")).content["figures"]["slide"]
    assert figures["dab_positive"] == 1
    assert figures["tissue_um2"] == (592**2 - 208**2) / 4


def test_each_region_is_measured_under_its_name(tmp_path) -> None:
    dab = np.zeros((512, 512))
    dab[:, :256] = 0.3
    slide = write_slide(tmp_path / "half.tif", paint(0 * dab, dab))
    square = [[100, 100], [400, 100], [400, 400], [100, 400], [100, 100]]
    hole = [[150, 150], [250, 150], [250, 250], [150, 250], [150, 150]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square, hole]}}
    named = [{**feature, "properties": {"name": "tumour"}}, {**feature, "properties": None}]
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": named}))
    result = measure(request(slide, tmp_path / "out", roi=tmp_path / "roi.geojson"))
    figures = result.content["figures"]
    assert list(figures) == ["slide", "tumour", "area"]
    assert figures["tumour"] == figures["area"]
    assert figures["tumour"]["area_um2"] == (300**2 - 100**2) / 4
    assert figures["tumour"]["dab_positive"] == pytest.approx((156 * 300 - 100**2) / (300**2 - 100**2))
    assert [row["region"] for row in rows_of(result.folder, "regions")] == ["slide", "tumour", "area"]


def test_regions_without_an_area_are_refused(tmp_path) -> None:
    slide = write_slide(tmp_path / "half.tif", paint(np.zeros((256, 256)), np.zeros((256, 256))))
    for text in ("no json", '{"type": "Point", "coordinates": [1, 2]}', '{"features": 3}'):
        (tmp_path / "roi.geojson").write_text(text)
        with pytest.raises(MaskError, match=r"roi\.geojson"):
            measure(request(slide, tmp_path / "out", roi=tmp_path / "roi.geojson"))


@pytest.mark.slow
def test_what_cannot_be_read_is_left_out_and_listed(tmp_path) -> None:
    dab = np.full((2048, 2048), 0.3)
    slide = write_svs(tmp_path / "damaged.svs", paint(0 * dab, dab), mpp=0.5, tile=256)
    damage(slide, 9)
    result = measure(request(slide, tmp_path / "out"))
    lost = result.content["unreadable"]
    assert lost == [[0, 0, 512, 512]]  # the block of 256 µm that holds the tile at row 1, column 1
    figures = result.content["figures"]["slide"]
    assert figures["tissue_um2"] == (2048**2 - 512**2) / 4
    assert figures["dab_positive"] == 1


def test_maps_open_in_other_software(tmp_path) -> None:
    slide = write_slide(tmp_path / "patches.tif", paint(*patchwork(600, 1000)))
    result = measure(request(slide, tmp_path / "out"))
    with tifffile.TiffFile(result.folder / "map.ome.tiff") as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        pixels = file.series[0].asarray()
        assert 'Name="dab_positive"' in file.ome_metadata
    assert pixels.shape[1:] == (math.ceil(300 / 64), math.ceil(500 / 64))
    rows = rows_of(result.folder, "blocks_64um")
    np.testing.assert_allclose(pixels[0].ravel(), [float(r["dab_positive"]) for r in rows], atol=1e-5)
    features = json.loads((result.folder / "heatmap.geojson").read_text())["features"]
    assert len(features) == len(rows_of(result.folder, "blocks_128um"))
    first = features[0]
    assert first["properties"]["objectType"] == "detection"
    assert first["geometry"]["coordinates"][0][0] == first["geometry"]["coordinates"][0][-1] == [0, 0]
    share = first["properties"]["measurements"]["dab_positive"]
    low, high = first["properties"]["classification"]["name"].removeprefix("DAB ").removesuffix(" %").split("-")
    assert float(low) <= 100 * share <= float(high)


def test_parquet_holds_the_table_of_the_csv(tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    slide = write_slide(tmp_path / "patches.tif", paint(*patchwork(600, 1000)))
    result = measure(request(slide, tmp_path / "out"))
    table = parquet.read_table(result.folder / "blocks_64um.parquet").to_pydict()
    rows = rows_of(result.folder, "blocks_64um")
    assert list(table) == list(rows[0])
    np.testing.assert_allclose(table["dab_positive"], [float(row["dab_positive"]) for row in rows], atol=1e-6)
    assert parquet.read_table(result.folder / "regions.parquet").to_pydict()["region"] == ["slide"]


def test_a_read_out_is_never_overwritten(tmp_path) -> None:
    slide = write_slide(tmp_path / "patches.tif", paint(*patchwork(256, 256)))
    measure(request(slide, tmp_path / "out"))
    with pytest.raises(OutputError, match="already has a read-out"):
        measure(request(slide, tmp_path / "out"))


def test_thresholds_must_ascend(tmp_path) -> None:
    with pytest.raises(ConfigError, match="each must be above"):
        Thresholds(0.5, 0.4, 0.6)


def test_a_virtual_stain_of_a_model_without_figures_has_no_interval(tmp_path) -> None:
    slide = write_slide(tmp_path / "he.tif", paint(*patchwork(600, 600)))
    output = convert(request_of(slide, tmp_path / "v.ome.tiff")).output
    result = measure(MeasureRequest(output, tmp_path / "out", mask="none", workers=0))
    assert result.content["virtual"]
    assert "the model identity 1.0.0 has none" in result.content["interval"]
    assert "VIRTUAL STAIN" in (result.folder / "report.html").read_text()
    assert "dab_positive_low" not in rows_of(result.folder, "regions")[0]


def test_another_model_than_the_one_that_made_it_is_refused(tmp_path) -> None:
    slide = write_slide(tmp_path / "he.tif", paint(*patchwork(600, 600)))
    output = convert(request_of(slide, tmp_path / "v.ome.tiff")).output
    with pytest.raises(BundleError, match="weights are not those of he2cam52-small"):
        measure(MeasureRequest(output, tmp_path / "out", model="he2cam52-small", workers=0))


def test_bounds_are_those_of_the_bin_of_the_predicted_share() -> None:
    scale = ErrorScale(128, (ErrorBin(0.1, 50, 0.0, 0.05), ErrorBin(1.0, 50, -0.2, 0.3)))
    bounds = intervals.bounds_of(np.array([0.02, 0.1, 0.5, 0.9]), scale)
    np.testing.assert_allclose(bounds, [[0.02, 0.07], [0.1, 0.15], [0.3, 0.8], [0.7, 1.0]])


def test_the_interval_of_a_slide_is_the_mean_of_its_blocks(tmp_path, monkeypatch) -> None:
    from wsi_stain.readout import measure as module

    scales = tuple(ErrorScale(um, (ErrorBin(1.0, 50, -0.1, 0.2),)) for um in (64, 128))
    held_out = HeldOut("test", 9, 1, 1, 0.15, 0.9, scales)
    monkeypatch.setattr(module, "interval_of", lambda survey: Interval(held_out, "text"))
    dab = np.zeros((512, 512))
    dab[:256] = 0.3
    slide = write_slide(tmp_path / "half.tif", paint(0 * dab, dab))
    figures = measure(request(slide, tmp_path / "out")).content["figures"]["slide"]
    # blocks of 0 have the bounds 0 and 0.2, blocks of 1 have 0.9 and 1
    assert figures["dab_positive_low"] == pytest.approx(0.45)
    assert figures["dab_positive_high"] == pytest.approx(0.6)


def test_the_command_prints_the_figures(tmp_path) -> None:
    dab = np.full((256, 256), 0.3)
    slide = write_slide(tmp_path / "s.tif", paint(0 * dab, dab))
    options = ["--mask", "none", "--stains", "ruifrok", "--background", "240,240,240", "--workers", "0"]
    result = CliRunner().invoke(group, ["measure", str(slide), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    assert "DAB-positive, %                  100.00" in result.output
    wrong = CliRunner().invoke(group, ["measure", str(slide), "--stains", "1,2"])
    assert wrong.exit_code == 2


def test_sums_add_up() -> None:
    one = Sums(4, 2, np.array([1, 1, 0, 0]), 0.3, 0.1)
    assert (one + one).tissue_px == 4
    assert ((one + one).classes == [2, 2, 0, 0]).all()


def test_a_drawn_mask_counts_to_its_outline_with_holes_and_ignored_areas(tmp_path) -> None:
    # Everything is positive; the areas of the outlines are known in pixels of 0.5 µm.
    slide = write_slide(tmp_path / "made.tif", paint(np.zeros((512, 512)), np.full((512, 512), 0.5)))

    def square(a: int, b: int) -> list[list[int]]:
        return [[a, a], [b, a], [b, b], [a, b], [a, a]]

    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}
        for rings, properties in (
            ([square(10, 311), square(100, 133)], {}),
            ([square(200, 217)], {"classification": {"name": "Ignore*"}}),
        )
    ]
    mask = tmp_path / "mask.geojson"
    mask.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    figures = measure(request(slide, tmp_path / "out", mask=mask)).content["figures"]["slide"]
    assert figures["tissue_um2"] == (301**2 - 33**2 - 17**2) / 4
    assert figures["dab_positive"] == 1


def test_a_virtual_stain_of_other_software_is_marked_as_one(tmp_path) -> None:
    dab = np.full((256, 256), 0.3)
    path = tmp_path / "other.tif"
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    about = {"description": "A virtual IHC stain", "metadata": None}
    tifffile.imwrite(path, paint(0 * dab, dab), photometric="rgb", **about, **resolution)
    result = measure(request(path, tmp_path / "out"))
    assert result.content["virtual"]
    assert "predictions of other software from H&amp;E" in " ".join((result.folder / "report.html").read_text().split())
