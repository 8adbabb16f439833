"""Covers of folders are never taken for the slide, and links are followed to where the folder is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders.slides import tissue, write_svs
from PIL import Image

from wsi_stain.errors import SlideError
from wsi_stain.slide.readers import cover
from wsi_stain.slide.slide import Slide


def write_cover(path: Path) -> Path:
    """The overview with the label, as a JPEG: what a MIRAX file is."""
    Image.fromarray(tissue(90, 60)).save(path, format="JPEG")
    return path


@pytest.mark.parametrize("name", ["case.mrxs", "case.MRXS", "case.Mrxs"])
def test_a_mirax_cover_without_its_folder_names_the_folder(tmp_path: Path, name: str) -> None:
    write_cover(tmp_path / name)
    with pytest.raises(
        SlideError, match=rf"^{name} is only the cover of a MIRAX slide; .*{tmp_path}/case, which is missing"
    ):
        Slide.open(tmp_path / name)


def test_a_mirax_folder_without_its_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    with pytest.raises(SlideError, match=rf"the folder {tmp_path}/case .* has no Slidedat\.ini"):
        Slide.open(write_cover(tmp_path / "case.mrxs"))


def test_the_ending_in_capitals_is_named(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case/Slidedat.ini").write_text("[GENERAL]\n")
    with pytest.raises(SlideError, match=r"case\.MRXS .* rename it to case\.mrxs"):
        Slide.open(write_cover(tmp_path / "case.MRXS"))


@pytest.mark.parametrize("link", ["other.mrxs", "other.jpg"])
def test_a_link_to_a_cover_is_no_picture(tmp_path: Path, link: str) -> None:
    (tmp_path / "store").mkdir()
    write_cover(tmp_path / "store/case.mrxs")
    (tmp_path / link).symlink_to(tmp_path / "store/case.mrxs")
    with pytest.raises(SlideError, match=rf"^{link} is only the cover .*{tmp_path}/store/case, which is missing"):
        Slide.open(tmp_path / link)


def test_a_link_is_opened_where_its_target_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    target = write_cover(tmp_path / "store/case.mrxs")
    link = tmp_path / "link.mrxs"
    link.symlink_to(target)
    monkeypatch.setattr(
        cover.openslide.OpenSlide, "detect_format", lambda path: "mirax" if path == target.resolve() else None
    )
    assert cover.opened_path(link) == target.resolve()


@pytest.mark.parametrize("tiled", [False, True])
def test_an_olympus_cover_names_its_folder(tmp_path: Path, tiled: bool) -> None:
    import tifffile

    path = tmp_path / "case.vsi"
    tifffile.imwrite(path, tissue(256, 256), photometric="rgb", tile=(64, 64) if tiled else None)
    with pytest.raises(
        SlideError, match=rf"^case\.vsi is only the cover of an Olympus slide; .*{tmp_path}/_case_, which"
    ):
        Slide.open(path)
    (tmp_path / "_case_").mkdir()
    with pytest.raises(SlideError, match=r"convert it, for example to OME-TIFF"):
        Slide.open(path)


def test_content_counts_more_than_the_ending(tmp_path: Path) -> None:
    shutil.copy(write_svs(tmp_path / "a.svs", tissue(300, 300)), tmp_path / "a.vsi")
    with Slide.open(tmp_path / "a.vsi") as slide:
        assert slide.properties["vendor"] == "aperio"
