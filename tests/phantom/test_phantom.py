import hashlib
import subprocess
import sys

import numpy as np
import openslide
import pytest
import tifffile
import tiffslide
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_stain import phantom
from wsi_stain.errors import OutputError
from wsi_stain.geometry import Box, Size
from wsi_stain.phantom import histology
from wsi_stain.phantom.noise import noise, points, uniform, wall_distance

SIZE = Size(1500, 1400)
SCALE = {"size": SIZE, "mpp": 2.0, "seed": 2}


@pytest.fixture(scope="session")
def whole() -> np.ndarray:
    return phantom.render(Box.of(SIZE), **SCALE)


@pytest.fixture(scope="session")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantom") / "phantom.svs"
    shares = []
    phantom.write_slide(path, **SCALE, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    return path


# The picture


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1499), st.integers(0, 1399), st.integers(1, 90), st.integers(1, 90))
def test_pixels_do_not_depend_on_the_box(whole, y, x, h, w):
    box = Box(y, x, min(y + h, SIZE.h), min(x + w, SIZE.w))
    assert np.array_equal(phantom.render(box, **SCALE), whole[box.slices()])


@pytest.mark.slow
def test_another_process_renders_the_same_pixels(whole):
    code = (
        "import hashlib; from wsi_stain.phantom import render; from wsi_stain.geometry import Box, Size;"
        f"part = render(Box(900, 900, 1200, 1300), size=Size(*{tuple(SIZE)}), mpp=2.0, seed=2);"
        "print(hashlib.sha256(part).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == hashlib.sha256(np.ascontiguousarray(whole[900:1200, 900:1300])).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("mpp", [0.25, 0.5, 2.0])
def test_no_seam_shows_where_patches_meet(mpp):
    """Steps across patch borders are no larger than steps elsewhere."""
    side = 3 * histology.PATCH
    size = Size(side, side)
    centre = Box(histology.PATCH - 200, 600, histology.PATCH + 200, side - 600)
    pixels = phantom.render(centre, size=size, mpp=mpp, seed=5).astype(float).mean(axis=2)
    rows = np.abs(np.diff(pixels, axis=0)).mean(axis=1)
    assert rows[199] < 1.15 * rows.max(where=np.arange(len(rows)) != 199, initial=0)
    assert rows[199] < 1.5 * np.median(rows)


@pytest.mark.slow
def test_seeds_differ_and_structures_keep_their_physical_size(whole):
    other = phantom.render(Box.of(SIZE), size=SIZE, mpp=2.0, seed=3)
    assert (other != whole).mean() > 0.3
    half = phantom.tissue(Box(0, 0, 750, 700), size=Size(750, 700), mpp=4.0, seed=2)
    full = phantom.tissue(Box.of(SIZE), **SCALE)
    assert (half == full[::2, ::2]).mean() > 0.97


def test_it_is_stained_like_haematoxylin_and_eosin(whole):
    truth = phantom.tissue(Box.of(SIZE), **SCALE)
    assert 0.35 < truth.mean() < 0.8
    background = whole[~truth].astype(float)
    assert np.abs(np.median(background, axis=0) - histology.BACKGROUND).max() <= 1
    assert 0.5 < background.std(axis=0).max() < 3
    density = -np.log((whole[truth] + 1.0) / 244)
    red, green, blue = np.median(density, axis=0)
    assert 0.08 < red < 0.5
    assert 0.2 < green < 0.8, "both stains absorb green most"
    assert green > blue > red * 0.6
    # Nuclei: dark, bluish purple, a tenth of the tissue or so; fat and lumens: white.
    nuclei = (density[:, 0] > 0.45) & (density[:, 1] > 0.6)
    assert 0.03 < nuclei.mean() < 0.35
    assert (density.max(axis=1) < 0.06).mean() > 0.03


def test_beyond_the_slide_the_background_goes_on():
    beyond = phantom.render(Box(-40, -30, -10, -5), **SCALE)
    assert np.abs(beyond.astype(int) - histology.BACKGROUND).max() < 12


def test_tissue_is_where_the_picture_is_not_background(whole):
    truth = phantom.tissue(Box.of(SIZE), **SCALE)
    dark = whole.min(axis=2) < 215
    assert dark[truth].mean() > 0.4
    assert dark[~truth].mean() < 0.002


# The file


def test_openslide_takes_it_for_an_aperio_slide_with_scale(slide):
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert float(opened.properties["openslide.mpp-x"]) == 2.0
        assert float(opened.properties["openslide.objective-power"]) == 5
        assert opened.level_dimensions == ((1400, 1500), (350, 375))
        assert opened.level_downsamples == pytest.approx((1, 4), rel=0.01)
        assert set(opened.associated_images) == {"thumbnail"}
        assert "SYNTHETIC PHANTOM" in opened.properties["openslide.comment"]


def test_openslide_and_tiffslide_show_the_same(slide):
    with openslide.OpenSlide(slide) as one, tiffslide.TiffSlide(slide) as two:
        assert one.level_dimensions == two.level_dimensions
        for level, (w, h) in enumerate(one.level_dimensions):
            a, b = (np.asarray(s.read_region((0, 0), level, (w // 2, h // 2)).convert("RGB")) for s in (one, two))
            assert np.abs(a.astype(int) - b).max() <= 2


def test_the_file_holds_what_render_gives(slide, whole):
    with tifffile.TiffFile(slide) as file:
        stored = file.pages[0].asarray()
        assert np.abs(stored.astype(int) - whole).mean() < 8
        quarter = file.pages[2].asarray()
    mean = whole.reshape(375, 4, 350, 4, 3).mean(axis=(1, 3))
    assert np.abs(quarter - mean).mean() < 5
    assert np.abs((quarter - mean).mean()) < 0.5, "no shift of colour or place"


@pytest.mark.slow
@pytest.mark.parametrize("size", [Size(100, 130), Size(513, 40), Size(520, 1030)])
def test_odd_sizes_are_whole_at_every_level(tmp_path, size):
    phantom.write_slide(tmp_path / "s.svs", size=size, mpp=2.0, seed=1)
    with tifffile.TiffFile(tmp_path / "s.svs") as file:
        assert file.pages[0].shape == (*size, 3)
        last = file.pages[-1].asarray().astype(float)
    factor = 4 ** (len(phantom.level_sizes(size)) - 1)
    whole = phantom.render(Box.of(size), size=size, mpp=2.0, seed=1).astype(float)
    crop = whole[: size.h // factor * factor, : size.w // factor * factor]
    mean = crop.reshape(size.h // factor, factor, size.w // factor, factor, 3).mean(axis=(1, 3))
    assert np.abs(last[: mean.shape[0], : mean.shape[1]] - mean).mean() < 8, "the noise of chroma subsampling"


def test_equal_arguments_give_equal_bytes(tmp_path):
    for name in ("a.svs", "b.svs"):
        phantom.write_slide(tmp_path / name, size=Size(700, 1100), mpp=0.5, seed=4)
    assert (tmp_path / "a.svs").read_bytes() == (tmp_path / "b.svs").read_bytes()


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "s.svs"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="already exists"):
        phantom.write_slide(path, size=Size(64, 64))
    assert path.read_bytes() == b"precious"
    phantom.write_slide(path, size=Size(64, 64), overwrite=True)
    assert path.stat().st_size > 100


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        phantom.write_slide(tmp_path / "no folder" / "s.svs", size=Size(64, 64))

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phantom.write_slide(tmp_path / "s.svs", size=Size(64, 64), progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mpp", [0.0, -1.0, 0.01, 100.0, float("nan")])
def test_an_absurd_scale_is_refused(tmp_path, mpp):
    with pytest.raises(OutputError, match="µm"):
        phantom.write_slide(tmp_path / "s.svs", size=Size(64, 64), mpp=mpp)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_slide(tmp_path):
    # Not ru_maxrss: a child inherits the peak of the process that started it.
    code = """
import sys
from pathlib import Path
from wsi_stain import phantom
from wsi_stain.geometry import Size
for h in (1024, 4096):
    phantom.write_slide(Path(sys.argv[1]) / f"{h}.svs", size=Size(h, 1500), mpp=2.0)
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    small, large = (int(kib) / 1024 for kib in out.split())
    assert large < 300, "MiB"
    assert large < 1.15 * small


# Procedural noise


def test_noise_is_a_function_of_place_with_unit_variance():
    y, x = np.arange(300) * 7.0, np.arange(280) * 7.0 - 400
    whole = noise(y, x, 50.0, 3)
    assert np.allclose(noise(y[40:90], x[100:], 50.0, 3), whole[40:90, 100:], atol=1e-12)
    assert abs(whole.mean()) < 0.1
    assert whole.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(whole, axis=0)).max() < 1.0, "smooth: steps of a seventh of the wavelength"


def test_points_are_the_same_whatever_rectangle_asks():
    all_of_them = points((-100, -100), (400, 400), 20.0, 9)
    some = points((0, 50), (130, 170), 20.0, 9)
    everywhere = set(zip(all_of_them.y.tolist(), all_of_them.x.tolist(), all_of_them.draw(3).tolist(), strict=True))
    assert set(zip(some.y.tolist(), some.x.tolist(), some.draw(3).tolist(), strict=True)) <= everywhere


def test_wall_distance_agrees_with_the_naive_one():
    y, x = np.arange(60) * 2.0 - 30, np.arange(50) * 2.0 + 11
    seeds = points((-200, -200), (300, 300), 30.0, 4)
    squared = np.sort(np.square(y[:, None, None] - seeds.y) + np.square(x[None, :, None] - seeds.x), axis=2)
    naive = (np.sqrt(squared[..., 1]) - np.sqrt(squared[..., 0])) / 2
    actual = wall_distance(y, x, 30.0, 4)
    assert np.mean(np.abs(actual - naive) < 1e-3) > 0.97, "it looks at the nine nearest cells only"


def test_hashes_are_uniform_and_uncorrelated():
    y, x = (v.ravel() for v in np.meshgrid(np.arange(-200, 200), np.arange(-200, 200), indexing="ij"))
    u = uniform(y, x, 1).reshape(400, 400)
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(u.ravel(), uniform(y, x, 2))[0, 1]) < 0.01
