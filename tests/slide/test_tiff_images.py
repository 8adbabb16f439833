"""Which image and which plane of a TIFF is read, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders.formats.picture import picture, reduced
from builders.formats.tiff import LABEL, leica
from builders.slides import tissue, write_svs
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box
from wsi_stain.slide.slide import Slide

OPTIONS: dict = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
REGION, OTHER = tissue(300, 420), tissue(280, 400, seed=1)
MACRO = np.full((500, 200, 3), (200, 40, 40), np.uint8)


def scale(mpp: float | None, name: str = "", axes: str = "YXS") -> dict:
    sizes = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    return {"axes": axes, **sizes, **({"Name": name} if name else {})}


def write(path: Path, *images: tuple[np.ndarray, dict]) -> Path:
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for pixels, metadata in images:
            tiff.write(pixels, metadata=metadata, **OPTIONS)
    return path


def whole(slide: Slide) -> np.ndarray:
    return slide.at(None).read(Box.of(slide.size))


@pytest.mark.parametrize(
    "macro",
    [
        scale(16.0),  # too coarse for a slide
        scale(4.0),  # an overview: sixteen times coarser than the region
        scale(None, "Macro"),
        scale(0.25, "label image"),
        scale(0.25, "Overview 1"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_macro_is_never_the_slide_however_large(tmp_path: Path, macro: dict, is_first: bool) -> None:
    images = [(MACRO, macro), (REGION, scale(0.25))]
    path = write(tmp_path / "a.ome.tif", *(images if is_first else images[::-1]))
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(whole(slide), REGION)
        assert slide.mpp == 0.25
        assert (slide.image, slide.notes) == (None, ())


def test_the_largest_of_several_regions_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", (OTHER, scale(0.25)), (MACRO, scale(20.0)), (REGION, scale(0.5)))
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(whole(slide), REGION)
        assert (slide.image, slide.mpp) == (2, 0.5)
        assert slide.notes == (
            "a.ome.tif holds 2 images: 0 (400 × 280 px), 2 (420 × 300 px); reading image 2, see --image",
        )
    with Slide.open(path, image=0) as slide:
        np.testing.assert_array_equal(whole(slide), OTHER)
        assert (slide.image, slide.mpp, slide.properties["image"]) == (0, 0.25, "0")


def test_an_image_that_is_not_there_or_no_slide_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", (OTHER, scale(0.25)), (MACRO, scale(0.25, "macro")), (REGION, scale(0.25)))
    with pytest.raises(SlideError, match=r"a\.ome\.tif has no image 7; pass --image with one of: 0 .*, 2 "):
        Slide.open(path, image=7)
    with pytest.raises(SlideError, match=r"image 1 of a\.ome\.tif is a label or macro image; pass --image"):
        Slide.open(path, image=1)
    one = write_svs(tmp_path / "a.svs", REGION)
    with pytest.raises(SlideError, match=r"a\.svs has no image 1; pass --image with one of: 0"):
        Slide.open(one, image=1)
    with pytest.raises(SlideError, match=r"a\.svs has one focal plane, not a plane 2; omit --z"):
        Slide.open(one, z=2)
    np.testing.assert_array_equal(whole(Slide.open(one, image=0, z=0)), whole(Slide.open(one)))


def test_a_macro_before_the_slide_in_a_plain_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(tissue(200, 90), metadata=None, **OPTIONS)
        tiff.write(REGION, metadata=None, **OPTIONS)
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(whole(slide), REGION)


def test_a_level_that_tifffile_does_not_link_is_no_other_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for pixels in (picture(800, 1000), reduced(picture(800, 1000), 5)):
            tiff.write(pixels, metadata=None, **OPTIONS)
    with Slide.open(tmp_path / "a.tif") as slide:
        assert (slide.image, slide.notes) == (None, ())


@pytest.mark.parametrize(("axes", "n", "middle"), [("ZYXS", 3, 1), ("ZYXS", 5, 2), ("ZYXS", 2, 1), ("TYXS", 4, 2)])
def test_the_middle_of_several_planes_is_read_and_named(tmp_path: Path, axes: str, n: int, middle: int) -> None:
    planes = np.stack([tissue(200, 260, seed) for seed in range(n)])
    path = write(tmp_path / "a.ome.tif", (planes, scale(0.25, axes=axes)))
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(whole(slide), planes[middle])
        assert (slide.plane, slide.mpp, slide.properties["plane"]) == (middle, 0.25, str(middle))
        kind = "focal planes" if axes[0] == "Z" else "times"
        assert slide.notes == (
            f"a.ome.tif holds {n} {kind}, 0 to {n - 1}: {middle}, the middle one, is read; pass --z for another",
        )
    for z in range(n):
        with Slide.open(path, z=z) as slide:
            np.testing.assert_array_equal(whole(slide), planes[z])
            assert slide.plane == z
    with pytest.raises(SlideError, match=rf"a\.ome\.tif has no plane {n}; pass --z between 0 and {n - 1}"):
        Slide.open(path, z=n)


def test_every_level_shows_the_same_plane(tmp_path: Path) -> None:
    planes = np.stack([tissue(256, 256, seed) for seed in range(3)])
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        tiff.write(planes, subifds=1, metadata=scale(0.25, axes="ZYXS"), **OPTIONS)
        tiff.write(planes[:, ::2, ::2], subfiletype=1, **OPTIONS)
    with Slide.open(tmp_path / "a.ome.tif", z=2) as slide:
        np.testing.assert_array_equal(slide.at(0.5).read(Box(0, 0, 128, 128)), planes[2, ::2, ::2])


def test_focal_planes_at_several_times(tmp_path: Path) -> None:
    stack = np.stack([[tissue(150, 160, 10 * t + z) for z in range(3)] for t in range(2)])
    path = write(tmp_path / "a.ome.tif", (stack, scale(0.25, axes="TZYXS")))
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(whole(slide), stack[1, 1])
        assert "T 1 of 2" in slide.notes[0]
    with Slide.open(path, z=0) as slide:
        np.testing.assert_array_equal(whole(slide), stack[1, 0])


def test_pixels_in_another_file_are_not_read_from_this_one(tmp_path: Path) -> None:
    part = write(tmp_path / "part.ome.tif", (OTHER, scale(0.25)))
    with tifffile.TiffFile(part) as tiff:
        xml = tiff.ome_metadata.replace("<TiffData", "<TiffData IFD='0' PlaneCount='1'").replace(" IFD='0'", "", 0)
    start, end = xml.index("<TiffData"), xml.index("</Pixels>")
    there = "<TiffData IFD='0' PlaneCount='1'><UUID FileName='part.ome.tif'>urn:uuid:1-2</UUID></TiffData>"
    described = xml[:start] + there + xml[end:]
    tifffile.imwrite(tmp_path / "a.ome.tif", REGION, description=described, metadata=None, **OPTIONS)
    with pytest.raises(SlideError, match=r"a\.ome\.tif keeps these pixels in another file; pass the file"):
        Slide.open(tmp_path / "a.ome.tif")


def test_areas_of_two_magnifications_are_two_images(tmp_path: Path) -> None:
    areas = ((10001, 20003, 700, 600), (11301, 20703, 600, 512))
    built = leica(tmp_path / "a.scn", areas=areas, objectives=(20, 40))
    with Slide.open(built.path) as slide:
        assert (slide.magnification, slide.bounds, slide.image) == (20, areas[0], 0)
        assert "holds 2 images: 0 (areas: 1, 20×, 0.5 µm/px), 1 (areas: 1, 40×" in slide.notes[0]
    with Slide.open(built.path, image=1) as slide:
        assert (slide.magnification, slide.bounds, slide.image) == (40, areas[1], 1)
    with pytest.raises(SlideError, match="has no image 2; pass --image between 0 and 1"):
        Slide.open(built.path, image=2)


def test_tiles_that_no_area_holds_are_white_or_come_from_a_finer_level(tmp_path: Path) -> None:
    areas = ((10001, 20003, 640, 600), (10901, 20003, 640, 600))
    whole_ = leica(tmp_path / "a.scn", areas=areas)
    holes = leica(tmp_path / "b.scn", areas=areas, absent={4: (0,), 5: (0,), 2: (0,)})
    with Slide.open(whole_.path) as a, Slide.open(holes.path) as b:
        expected = whole(a).copy()
        expected[:256, 900 : 900 + 256] = 255  # level 0 of the second area
        np.testing.assert_array_equal(whole(b), expected)
        for slide in (a, b):
            assert slide.size == (600, 1540)
        fine, coarse = (s.at(2.0).read(Box(0, 0, 150, 385)).astype(int) for s in (a, b))
        assert np.abs(fine - coarse)[:, :160].mean() < 1.5  # page 2 from page 1
        assert (coarse[:64, 225 : 225 + 64] == 255).all()  # page 5 from page 4, where level 0 was not scanned
        assert np.abs(fine - coarse)[:, 225 + 64 :].mean() < 1.5


def test_convert_says_and_records_what_it_chose(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ome.tif",
        (LABEL, scale(0.25, "label")),
        (OTHER, scale(0.25)),
        (np.stack([REGION] * 3), scale(0.25, axes="ZYXS")),
    )
    run = CliRunner()
    command = ["convert", str(path), "--model", "identity", "--mask", "none", "--workers", "0", "--json", "-o"]
    result = run.invoke(group, [*command, str(tmp_path / "b.ome.tiff")], catch_exceptions=False)
    record = (tmp_path / "b.ome.tiff.run.json").read_text()
    assert '"image": 2' in record
    assert '"plane": 1' in record
    info = run.invoke(group, ["info", str(path)], catch_exceptions=False)
    assert "holds 2 images" in info.stdout
    assert "holds 3 focal planes" in info.stdout
    run.invoke(group, [*command, str(tmp_path / "c.ome.tiff"), "--image", "1"], catch_exceptions=False)
    with Slide.open(tmp_path / "c.ome.tiff") as slide:
        assert (slide.size.h, slide.size.w) == OTHER.shape[:2]
    assert result.exit_code == 0
