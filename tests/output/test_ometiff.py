import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
import tiffslide
from builders import bioformats_reader
from builders.pyramids import ArraySource, metadata, paint

from wsi_stain.errors import OutputError, SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.output.encoding import Encoding
from wsi_stain.output.ometiff import NOTICE, RESEARCH_USE, OmeMetadata, Roi, describe, problems, write
from wsi_stain.output.ometiff.xml import REQUIRED

ENCODINGS = {
    "420": Encoding(),
    "422": Encoding(subsampling="422"),
    "rgb": Encoding(subsampling="rgb"),
    "deflate": Encoding("deflate"),
}
SIZES = {"small": Size(200, 300), "odd": Size(777, 1031), "flat": Size(1, 5000), "large": Size(1300, 2100)}
ROIS = (Roi("unreadable in the source", Box(3, 5, 100, 205)), Roi("ä < ö & \n ü", Box(0, 0, 1, 1)))


class Written:
    """A file and what was painted in it."""

    def __init__(self, folder: Path, encoding: str, size: str, *, compat: bool) -> None:
        self.path = folder / f"{encoding}-{size}{'-compat' * compat}-é.ome.tiff"
        self.is_exact = encoding == "deflate"
        self.source = ArraySource(paint(SIZES[size]), ENCODINGS[encoding])
        self.rois = ROIS if size == "large" else ()
        write(self.path, self.source, metadata(self.path.name, rois=self.rois), compat_openslide=compat)

    def check(self, seen: np.ndarray, level: int) -> None:
        """Compare one level of pixels, uint8 (h, w, 3), as a reader gives them."""
        painted = self.source.levels[level]
        assert seen.shape == painted.shape
        error = np.abs(seen.astype(int) - painted).mean(axis=(0, 1))
        assert error.max() <= (0 if self.is_exact else 4), f"level {level}: {error}"


PICTURE = paint(Size(200, 300))


class Dense(ArraySource):
    """Stores YCbCr at full resolution, and says so: correct in every reader but one."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(pixels, Encoding())
        self.encoding = self  # type: ignore[assignment]

    samples = 3

    def encode(self, tile: np.ndarray) -> bytes:
        return imagecodecs.jpeg8_encode(tile, colorspace="RGB", outcolorspace="YCBCR", subsampling="444")

    def tifffile_options(self) -> dict[str, Any]:
        return {"photometric": "rgb", "compression": "jpeg", "subsampling": (1, 1)}


CASES = [(e, s, False) for e in ENCODINGS for s in SIZES] + [(e, "large", True) for e in ENCODINGS]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[tuple[str, str, bool], Written]:
    folder = tmp_path_factory.mktemp("ometiff")
    return {case: Written(folder, case[0], case[1], compat=case[2]) for case in CASES}


@pytest.fixture(scope="module")
def misshapen(tmp_path_factory) -> dict[str, Path]:
    """Files that Python's readers open like any other."""
    folder = tmp_path_factory.mktemp("misshapen")
    files = {name: folder / f"{name}.ome.tiff" for name in ("disordered", "escaped", "pink")}
    for name, path in files.items():
        write(path, Dense(PICTURE) if name == "pink" else ArraySource(PICTURE, Encoding()), metadata(path.name))
    text = tifffile.tiffcomment(files["disordered"]) or ""
    swapped = re.sub("(<InstrumentRef .*?/>)(<ObjectiveSettings .*?/>)", r"\2\1", text)
    tifffile.tiffcomment(files["disordered"], swapped.encode())
    text = tifffile.tiffcomment(files["escaped"]) or ""
    tifffile.tiffcomment(files["escaped"], text.replace("µ", "&#181;").encode())
    return files


@pytest.fixture(scope="module")
def in_bioformats(written, misshapen, tmp_path_factory) -> dict[Any, bioformats_reader.Seen]:
    names, files = [*written, *misshapen], [*(w.path for w in written.values()), *misshapen.values()]
    return dict(zip(names, bioformats_reader.look(files, tmp_path_factory.mktemp("seen")), strict=True))


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request) -> tuple[str, str, bool]:
    return request.param


@pytest.mark.java
@pytest.mark.slow
def test_bioformats_sees_one_colour_image_with_the_whole_pyramid(case, written, in_bioformats):
    file, facts = written[case], in_bioformats[case].facts
    assert "error" not in facts, facts["error"]
    expected = {
        **{"format": "OME-TIFF", "series": "1", "images": "1", "rgb_channels": "3", "channels": "1", "type": "uint8"},
        **{"name": file.path.name, "mpp_x": "0.5", "mpp_y": "0.5", "unit": "µm", "magnification": "20.0"},
        **{"resolutions": str(len(file.source.sizes)), "rois": str(len(file.rois)), "schema_errors": "none"},
        **{f"size{level}": f"{size.h} {size.w}" for level, size in enumerate(file.source.sizes)},
    }
    assert {key: facts[key] for key in expected} == expected


@pytest.mark.java
@pytest.mark.slow
def test_bioformats_decodes_every_level_as_painted(case, written, in_bioformats):
    levels = in_bioformats[case].levels
    assert len(levels) == len(written[case].source.sizes)
    for level, pixels in enumerate(levels):
        written[case].check(pixels, level)


@pytest.mark.java
@pytest.mark.slow
def test_bioformats_reads_provenance_and_regions(in_bioformats):
    facts = in_bioformats["420", "large", False].facts
    assert NOTICE in facts["comment"]
    errors = {key.removeprefix("map:"): value for key, value in facts.items() if key.startswith("map:")}
    assert errors.items() >= {"notice": NOTICE, "use": RESEARCH_USE, "stain": "HER2", "model": "he2her2"}.items()
    assert facts["tile0"] == "512 512"
    assert facts["roi0"] == "unreadable in the source 5.0 3.0 200.0 97.0"
    assert facts["roi1"].startswith("ä < ö &   ü 0.0 0.0")


@pytest.mark.java
@pytest.mark.slow
def test_bioformats_shows_why_the_rules_are_there(misshapen, in_bioformats):
    facts = {name: in_bioformats[name].facts for name in misshapen}
    assert "InstrumentRef" in facts["disordered"]["schema_errors"]
    assert facts["escaped"]["format"] != "OME-TIFF"
    off = in_bioformats["pink"].levels[0].astype(int) - PICTURE
    assert np.abs(off).mean() > 10, "this Bio-Formats reads 4:4:4 rightly: rule 9 may be dropped"


@pytest.mark.parametrize(("name", "rule"), [("escaped", 3), ("pink", 9)])
def test_what_bioformats_does_not_bear_is_reported(misshapen, name, rule):
    assert [(p.severity, p.rule) for p in problems(misshapen[name])] == [("error", rule)]


def test_tifffile_sees_one_series_and_decodes_every_level_as_painted(case, written):
    file = written[case]
    with tifffile.TiffFile(file.path) as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_ome
        assert len(tiff.series) == 1
        assert len(tiff.series[0].levels) == len(file.source.sizes)
        for level, page in enumerate(tiff.series[0].levels):
            file.check(page.asarray(), level)


def test_tiffslide_sees_pyramid_and_scale_and_decodes_every_level_as_painted(case, written):
    file = written[case]
    with tiffslide.TiffSlide(file.path) as slide:
        assert slide.level_dimensions == tuple((size.w, size.h) for size in file.source.sizes)
        assert float(slide.properties[tiffslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.5)
        for level, size in enumerate(file.source.sizes):
            file.check(np.asarray(slide.read_region((0, 0), level, (size.w, size.h), as_array=True))[..., :3], level)


@pytest.mark.slow
def test_openslide_sees_the_scale_and_level_0_and_with_compat_all_levels(case, written):
    file, is_compat = written[case], case[2]
    with openslide.OpenSlide(file.path) as slide:
        sizes = file.source.sizes if is_compat else file.source.sizes[:1]
        assert slide.level_dimensions == tuple((size.w, size.h) for size in sizes)
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.5)
        for level, size in enumerate(sizes):
            region = np.asarray(slide.read_region((0, 0), level, (size.w, size.h)))
            assert (region[..., 3] == 255).all()
            file.check(region[..., :3], level)


def test_no_rule_is_broken(case, written):
    assert problems(written[case].path) == []


def test_the_same_run_gives_the_same_bytes(tmp_path):
    source = ArraySource(paint(Size(700, 600)), Encoding())
    for name in ("a.part", "b.ome.tiff"):
        write(tmp_path / name, source, metadata("x.ome.tiff"))
    assert (tmp_path / "a.part").read_bytes() == (tmp_path / "b.ome.tiff").read_bytes()


def test_compat_changes_eight_bytes_and_no_more(tmp_path):
    source = ArraySource(paint(Size(700, 600)), Encoding())
    for name, compat in (("a", False), ("b", True)):
        write(tmp_path / name, source, metadata("x.ome.tiff"), compat_openslide=compat)
    a, b = (np.frombuffer((tmp_path / name).read_bytes(), np.uint8) for name in "ab")
    changed = np.flatnonzero(a != b)
    assert 0 < len(changed) <= 8
    assert changed[-1] - changed[0] < 8


def test_an_image_of_one_level_has_nothing_to_link(tmp_path):
    source = ArraySource(paint(Size(70, 60)), Encoding())
    for name, compat in (("a", False), ("b", True)):
        write(tmp_path / name, source, metadata("x.ome.tiff"), compat_openslide=compat)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_number_of_tiles_is_refused(tmp_path, change):
    class Wrong(ArraySource):
        def tiles(self, level: int, plane: int = 0) -> Iterator[bytes]:
            tiles = list(super().tiles(level, plane))
            yield from tiles[:change] if change < 0 else [*tiles, tiles[0]]

    with pytest.raises(OutputError, match=r"level 0 has (only 3|more than 4)"):
        write(tmp_path / "x.ome.tiff", Wrong(paint(Size(700, 600)), Encoding()), metadata("x.ome.tiff"))


class Wallpaper:
    """A slide of any size: one tile again and again."""

    encoding = Encoding()

    def __init__(self, size: Size) -> None:
        self.sizes: tuple[Size, ...] = (size,)
        while max(self.sizes[-1]) > 512:
            self.sizes = (*self.sizes, self.sizes[-1].halved())
        self.tile = self.encoding.encode(paint(Size(512, 512)))
        self.n_given = 0

    def tiles(self, level: int, plane: int = 0) -> Iterator[bytes]:
        grid = self.sizes[level].ceil_div(512)
        for _ in range(grid.h * grid.w):
            self.n_given += 1
            yield bytes(bytearray(self.tile))  # an object of its own, as a file would give


def test_memory_does_not_hold_the_tiles(tmp_path):
    source, path = Wallpaper(Size(25_000, 25_000)), tmp_path / "x.ome.tiff"
    tracemalloc.start()
    write(path, source, metadata(path.name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > source.n_given * len(source.tile) > 20 * 2**20
    assert peak < 3 * 2**20


def test_every_level_says_its_own_resolution_in_cm(written):
    with tifffile.TiffFile(written["420", "large", False].path) as tiff:
        for level, page in enumerate(tiff.series[0].levels):
            tags = page.keyframe.tags
            for name in ("XResolution", "YResolution"):
                over, under = tags[name].value
                assert over / under == pytest.approx(20000 / 2**level, rel=1e-6)
            assert tags["ResolutionUnit"].value == 3
            assert "DateTime" not in tags


def test_without_a_scale_none_is_made_up(tmp_path):
    path = tmp_path / "x.ome.tiff"
    write(path, ArraySource(paint(Size(70, 60)), Encoding()), metadata(path.name, mpp=None, magnification=None))
    errors = describe(path)
    assert (errors["mpp"], errors["magnification"]) == (None, None)
    assert {(p.severity, p.rule) for p in problems(path)} == {("warning", 11), ("warning", 12)}


@pytest.mark.parametrize(("mpp", "magnification"), [(0.2528, 40), (0.499, 20.0), (1.0, 10), (1 / 3, 30.000001)])
def test_scale_and_magnification_are_read_back_exactly(tmp_path, mpp, magnification):
    path = tmp_path / "x.ome.tiff"
    write(
        path, ArraySource(paint(Size(700, 60)), Encoding()), metadata(path.name, mpp=mpp, magnification=magnification)
    )
    errors = describe(path)
    assert (errors["mpp"], errors["magnification"]) == (mpp, magnification)
    assert problems(path) == []


def test_description_tells_what_the_file_is_and_where_it_comes_from(written):
    file = written["422", "large", True]
    facts = describe(file.path)
    assert facts["levels"] == [{"width": size.w, "height": size.h} for size in file.source.sizes]
    assert (facts["compression"], facts["photometric"], facts["subsampling"]) == ("JPEG", "YCbCr", "4:2:2")
    assert facts["name"] == file.path.name
    assert facts["virtual"]
    assert facts["openslide_pyramid"]
    assert facts["rois"] == 2
    assert set(facts["annotations"]) == {*REQUIRED, "notice", "use", "stain", "digital_source_type"}
    assert not describe(written["rgb", "large", False].path)["openslide_pyramid"]
    assert describe(written["rgb", "odd", False].path)["photometric"] == "RGB"
    assert describe(written["deflate", "odd", False].path)["compression"] == "Deflate"


def test_the_notice_cannot_be_replaced_by_an_annotation(tmp_path):
    path = tmp_path / "x.ome.tiff"
    plain = metadata(path.name)
    forged = OmeMetadata(
        plain.name, 0.5, 20, "HER2", {**plain.annotations, "notice": "a physical IHC", "use": "all"}, uuid=plain.uuid
    )
    write(path, ArraySource(paint(Size(70, 60)), Encoding()), forged)
    assert describe(path)["annotations"]["notice"] == NOTICE
    assert describe(path)["annotations"]["use"] == RESEARCH_USE


def test_describing_what_is_no_slide_is_an_error_in_one_sentence(tmp_path):
    path = tmp_path / "x.ome.tiff"
    with pytest.raises(SlideError, match="No such file"):
        describe(path)
    path.write_text("not a slide")
    with pytest.raises(SlideError, match="is not a TIFF"):
        describe(path)


def test_foreign_files_are_described_with_what_they_have(data):
    errors = describe(data / "slides" / "wsic_XYC_jpeg_pyramid.ome.tiff")
    assert (errors["ome"], errors["virtual"], errors["stain"]) == (True, False, None)
    assert errors["creator"].startswith("OME Bio-Formats")
    assert describe(data / "slides" / "CMU-1-Small-Region.svs")["width"] == 2220
