"""OME-Zarr as input: planes, images, units, damage, and what is no slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from builders.formats.omezarr import mark, ome_zarr, pyramid
from builders.slides import tissue

from wsi_stain.errors import SlideError, UnreadableRegion
from wsi_stain.geometry import Box
from wsi_stain.slide.slide import Slide

PIXELS = tissue(420, 640)


def whole(slide: Slide) -> np.ndarray:
    return slide.at(None).read(Box.of(slide.size))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_middle_plane_is_read_and_named(tmp_path: Path, version: str) -> None:
    pyramid(
        zarr.create_group(tmp_path / "a", zarr_format=2 if version == "0.4" else 3),
        PIXELS,
        0.5,
        version=version,
        planes=3,
    )
    with Slide.open(tmp_path / "a") as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert (slide.plane, slide.mpp, slide.backend) == (1, 0.5, "zarr")
        assert slide.notes == ("a holds 3 focal planes, 0 to 2: 1, the middle one, is read; pass --z for another",)
    with Slide.open(tmp_path / "a", z=0) as slide:
        np.testing.assert_array_equal(whole(slide), 255 - PIXELS)


def test_a_box_is_a_cut_of_the_whole(tmp_path: Path) -> None:
    pyramid(zarr.create_group(tmp_path / "a"), PIXELS, 0.5, version="0.5")
    with Slide.open(tmp_path / "a") as slide:
        for box in (Box(0, 0, 1, 1), Box(190, 290, 210, 310), Box(399, 599, 420, 640)):
            np.testing.assert_array_equal(slide.at(None).read(box), PIXELS[box.slices()])


def test_of_several_images_the_largest_of_slide_scale(tmp_path: Path) -> None:
    root = zarr.create_group(tmp_path / "a")
    for n, (pixels, mpp) in enumerate(((tissue(900, 900), 20.0), (tissue(200, 300), 0.5), (PIXELS, 0.5))):
        pyramid(root.create_group(str(n)), pixels, mpp, version="0.5")
    with Slide.open(tmp_path / "a") as slide:
        np.testing.assert_array_equal(whole(slide), PIXELS)
        assert slide.notes == ("a holds 2 images: 1 (300 × 200 px), 2 (640 × 420 px); reading image 2, see --image",)
    with Slide.open(tmp_path / "a", image=1) as slide:
        np.testing.assert_array_equal(whole(slide), tissue(200, 300))


def test_without_a_unit_the_pixel_size_is_unknown(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a", version="0.5", unit="").path
    with Slide.open(path) as slide, pytest.raises(SlideError, match="a has no pixel size"):
        _ = slide.mpp
    path = ome_zarr(tmp_path / "b", version="0.4", unit="nanometer").path
    with Slide.open(path) as slide:
        assert slide.mpp_or_none is None  # 0.25 nm is no scanner's


def test_what_is_no_slide_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "empty")
    with pytest.raises(SlideError, match="empty holds no OME-Zarr image"):
        Slide.open(tmp_path / "empty")
    zarr.create_array(tmp_path / "array", data=PIXELS)
    with pytest.raises(SlideError, match="array is not a readable Zarr"):
        Slide.open(tmp_path / "array")
    group = zarr.create_group(tmp_path / "grey")
    group.create_array("0", data=PIXELS[..., 0])
    scale = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    mark(group, {"multiscales": [{"axes": axes, "datasets": [scale]}]}, "0.5")
    with pytest.raises(SlideError, match=r"grey has 420×640 \(YX\) values, not RGB pixels"):
        Slide.open(tmp_path / "grey")
    (tmp_path / "grey" / "zarr.json").write_text("{")
    with pytest.raises(SlideError, match="grey is not a readable Zarr"):
        Slide.open(tmp_path / "grey")


def test_a_damaged_chunk_fails_alone(tmp_path: Path) -> None:
    pyramid(zarr.create_group(tmp_path / "a"), PIXELS, 0.5, version="0.5")
    chunk = tmp_path / "a/0/c/0/1/0/1/0"
    chunk.write_bytes(chunk.read_bytes()[:50])
    with Slide.open(tmp_path / "a") as slide:
        np.testing.assert_array_equal(slide.at(None).read(Box(0, 0, 200, 640)), PIXELS[:200])
        with pytest.raises(UnreadableRegion, match="a chunk at x 0, y 200"):
            slide.at(None).read(Box(250, 0, 260, 10))
