"""What must not be stained is refused before anything is written; replaced pixels are never taken for done."""

import os

import numpy as np
import pytest
from builders.conversions import noise, pixels_of, request_of, write_slide
from builders.dicom import write_series
from builders.slides import tissue

from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import OutputError, SlideError
from wsi_stain.model.bundle import IdentityGenerator


@pytest.mark.parametrize("name", ["v.ome.tiff", "v.tiff", "v.dcm", "folder"])
def test_a_virtual_stain_is_not_stained_again_unless_the_user_says_so(tmp_path, name):
    image = noise(300, 300)
    written = tmp_path / ("v.dcm" if name in ("v.dcm", "folder") else "v.ome.tiff")
    virtual = convert(request_of(write_slide(tmp_path / "s.tif", image), written)).output
    virtual = virtual.rename(tmp_path / name)
    again = request_of(virtual, tmp_path / "again.ome.tiff", restart=True)
    with pytest.raises(SlideError, match=rf"{name} is a virtual stain \(identity\).*--allow-virtual"):
        convert(again)
    assert not list(tmp_path.glob("again*"))
    allowed = request_of(virtual, tmp_path / "again.ome.tiff", allow_virtual=True)
    assert np.array_equal(pixels_of(convert(allowed).output), image)


def test_a_dark_slide_is_not_stained_unless_the_user_says_so(tmp_path):
    image = (noise(300, 300) // 4) * (np.random.default_rng(0).random((300, 300, 1)) > 0.5).astype(np.uint8)
    slide = write_slide(tmp_path / "s.tif", image)
    with pytest.raises(SlideError, match="no bright background"):
        Survey.of(request_of(slide, tmp_path / "x.ome.tiff"))
    forced = request_of(slide, tmp_path / "x.ome.tiff", force_brightfield=True)
    assert np.array_equal(pixels_of(convert(forced).output), image)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_replaced_pixels_of_a_series_are_another_slide(tmp_path, named):
    pixels = tissue(200, 300)
    files = write_series(tmp_path / "d", pixels)
    slide = tmp_path / "d" if named == "folder" else files[1]  # the pixels are in the first
    request = request_of(slide, tmp_path / "x.ome.tiff")
    assert np.array_equal(pixels_of(convert(request).output), pixels)
    assert convert(request).already_done
    data, stat = files[0].read_bytes(), files[0].stat()
    at = data.index(pixels[0, :16].tobytes())
    files[0].write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(OutputError, match="from another slide"):
        convert(request)
    changed = pixels_of(convert(request_of(slide, tmp_path / "x.ome.tiff", restart=True)).output)
    assert (changed != pixels).sum() == 1


def acting(monkeypatch, act):
    """Calls `act` once, with the third batch of tiles."""
    calls = []

    def generate(self, tiles):
        calls.append(1)
        if len(calls) == 3:
            act()
        return tiles

    monkeypatch.setattr(IdentityGenerator, "__call__", generate)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slide_that_changes_while_it_is_read_gives_no_output_and_leaves_no_block(tmp_path, monkeypatch, workers):
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    request = request_of(slide, tmp_path / "x.ome.tiff", "grid.tile=256", workers=workers)
    good, other = slide.read_bytes(), write_slide(tmp_path / "o.tif", noise(1500, 1300, seed=1)).read_bytes()
    acting(monkeypatch, lambda: slide.write_bytes(other))
    with pytest.raises(SlideError, match="was changed during the conversion"):
        convert(request)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.tif", "s.tif"]
    slide.write_bytes(good)
    assert np.array_equal(pixels_of(convert(request).output), noise(1500, 1300))


def test_a_slide_that_vanishes_gives_no_output_and_the_same_command_resumes(tmp_path, monkeypatch):
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    request = request_of(slide, tmp_path / "x.ome.tiff", "grid.tile=256")
    acting(monkeypatch, lambda: slide.rename(tmp_path / "away.tif"))
    with pytest.raises(SlideError, match="deleted or moved during the conversion; restore it"):
        convert(request)
    assert not request.output.exists()
    (tmp_path / "away.tif").rename(slide)
    result = convert(request)
    assert result.record["blocks"]["painted_in_this_run"] == 0
    assert np.array_equal(pixels_of(result.output), noise(1500, 1300))


def test_a_slide_that_was_only_touched_is_the_same(tmp_path, monkeypatch):
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    acting(monkeypatch, slide.touch)
    result = convert(request_of(slide, tmp_path / "x.ome.tiff", "grid.tile=256"))
    assert np.array_equal(pixels_of(result.output), noise(1500, 1300))
