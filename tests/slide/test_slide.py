"""Slides and views: exact coordinates, sRGB, honest µm/px, and failures that stay local."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
from builders.slides import ComputedBackend, damage, hashed, profile, tissue, write_svs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from wsi_stain.errors import SlideError, UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.pixel_size import exact_downsample
from wsi_stain.slide.readers.base import DecodeError
from wsi_stain.slide.slide import Slide

HUGE = Size(100_000, 100_001)
HUGE_LEVELS = [HUGE, Size(25_000, 25_000), Size(6250, 6250)]


def address(level: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Each pixel's own row and column in its colour: 12 bits of both."""
    return np.stack(
        [
            y & np.uint64(255),
            x & np.uint64(255),
            (y >> np.uint64(8) & np.uint64(15)) << np.uint64(4) | x >> np.uint64(8) & np.uint64(15),
        ],
        axis=-1,
    ).astype(np.uint8)


def computed(sizes: list[Size], pixels=hashed, **metadata: object) -> Slide:
    return Slide(Path("computed.svs"), ComputedBackend(sizes, pixels, **metadata))


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (1.0, 1), (4.0, 2)])
def test_the_far_corner_of_a_huge_slide_is_where_it_is(mpp: float, level: int) -> None:
    slide = computed(HUGE_LEVELS, address)
    view = slide.at(mpp)
    assert view.scale == slide.levels[level].downsample == Fraction(mpp) * 4
    for y, x in [
        (0, 0),
        (view.size.h - 64, view.size.w - 65),
        (0, view.size.w - 65),
        (view.size.h // 3, view.size.w // 2),
    ]:
        box = Box(y, x, y + 64, x + 64)
        rows, columns = np.mgrid[y : y + 64, x : x + 64].astype(np.uint64)
        np.testing.assert_array_equal(view.read(box), address(level, rows, columns))


@pytest.mark.parametrize("mpp", [0.989, 0.5, 0.3333, 3.956, 0.2501, 0.24])
def test_any_scale_is_exact_in_the_far_corner(mpp: float) -> None:
    slide = computed(HUGE_LEVELS)
    view = slide.at(mpp)
    level = max(i for i in range(3) if i == 0 or 4**i <= view.scale)
    step = view.scale / 4**level
    y, x = view.size.h - 3, view.size.w - 3
    pixels = view.read(Box(y, x, y + 2, x + 2))
    for i in range(2):
        for j in range(2):
            expected = naive_mean(level, (y + i, x + j), step, HUGE_LEVELS[level])
            assert abs(pixels[i, j] - expected).max() <= 0.5001


def naive_mean(level: int, pixel: tuple[int, int], step: Fraction, size: Size) -> np.ndarray:
    """One pixel of a view from its definition, in Fractions; bilinear where the view is finer than the slide."""
    axes = []
    for n, length in zip(pixel, size, strict=True):
        if step >= 1:
            low, high = n * step, (n + 1) * step
            taps = [(j, (min(high, j + 1) - max(low, j)) / step) for j in range(floor(low), ceil(high))]
        else:
            centre = (n + Fraction(1, 2)) * step - Fraction(1, 2)
            taps = [(floor(centre), 1 - centre % 1), (floor(centre) + 1, centre % 1)]
        axes.append([(min(max(j, 0), length - 1), weight) for j, weight in taps])
    total = np.zeros(3)
    for row, wy in axes[0]:
        for column, wx in axes[1]:
            total += hashed(level, np.array([[row]], np.uint64), np.array([[column]], np.uint64))[0, 0] * float(wy * wx)
    return total


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0.25, 0.26, 0.4, 0.5, 0.989, 1.0, 1.3, 0.23]),
    st.integers(-30, 260),
    st.integers(-30, 260),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([None, Box(6, 10, 221, 239)]),
)
@example(mpp=1.0, y=58, x=60, h=9, w=9, bounds=None)  # the level is a pixel narrower than the view
def test_a_pixel_has_the_same_value_in_every_box(mpp, y, x, h, w, bounds) -> None:
    slide = computed([Size(240, 251), Size(60, 62)], bounds=bounds)
    view = slide.at(mpp)
    whole = np.pad(view.read(Box.of(view.size)), ((400, 400), (400, 400), (0, 0)), mode="edge")
    box = Box(y, x, y + h, x + w)
    np.testing.assert_array_equal(view.read(box), whole[box.shift(400, 400).slices()])


def test_large_boxes_are_read_in_pieces_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = computed([Size(700, 900)])
    view = slide.at(0.83)
    whole = view.read(Box.of(view.size))
    monkeypatch.setattr("wsi_stain.slide.resample.PIECE_PX", 10_000)
    slide._backend.boxes.clear()
    np.testing.assert_array_equal(view.read(Box.of(view.size)), whole)
    assert max(box.area for box in slide._backend.boxes) <= 10_000


def test_bounds_crop_every_level() -> None:
    bounds = Box(6, 10, 206, 210)
    slide = computed([Size(240, 251), Size(60, 62)], bounds=bounds)
    whole = computed([Size(240, 251), Size(60, 62)])
    assert slide.size == Size(200, 200)
    assert slide.levels[1].size == Size(50, 50)
    inside = whole.at(None).read(bounds)
    np.testing.assert_array_equal(slide.at(None).read(Box(0, 0, 200, 200)), inside)
    # At a quarter, a pixel begins 1.5 rows and 2.5 columns into the level: the mean of four of its pixels.
    level = whole.at(1.0).read(Box(0, 0, 60, 62)).astype(int)
    expected = (level[1:51, 2:52] + level[2:52, 2:52] + level[1:51, 3:53] + level[2:52, 3:53] + 2) // 4
    np.testing.assert_array_equal(slide.at(1.0).read(Box(0, 0, 49, 49)), expected[:49, :49])


def test_nonsense_bounds_are_ignored() -> None:
    assert computed([Size(240, 251)], bounds=Box(900, 900, 950, 950)).size == Size(240, 251)


def test_outside_is_the_nearest_pixel_of_the_border() -> None:
    view = computed([Size(40, 50)]).at(None)
    whole = view.read(Box(0, 0, 40, 50))
    outside = view.read(Box(-3, -2, 42, 55))
    np.testing.assert_array_equal(outside, np.pad(whole, ((3, 2), (2, 5), (0, 0)), mode="edge"))
    assert (view.read(Box(100, -90, 104, -80)) == whole[39, 0]).all()
    assert view.read(Box(5, 5, 5, 9)).shape == (0, 4, 3)


def test_level_0_is_what_the_backend_decodes(tmp_path: Path) -> None:
    with Slide.open(write_svs(tmp_path / "a.svs", tissue(500, 600))) as slide:
        decoded = slide._backend.read(0, Box(0, 0, 500, 600))
        for view in (slide.at(None), slide.at(0.25)):
            assert view.scale == 1
            np.testing.assert_array_equal(view.read(Box(13, 17, 400, 590)), decoded[13:400, 17:590])


@pytest.mark.parametrize(
    ("base", "level", "downsample"),
    [
        (Size(100_001, 100_003), Size(25_000, 25_000), Fraction(4)),
        (Size(14_799, 18_862), Size(925, 1179), Fraction(16)),
        (Size(1000, 1500), Size(400, 600), Fraction(5, 2)),
        (Size(2967, 2220), Size(2967, 2220), Fraction(1)),
        (Size(5, 7), Size(1, 1), Fraction(5)),
        (Size(14_799, 18_862), Size(58, 74), Fraction(255)),
        (Size(1000, 2000), Size(500, 800), Fraction(5, 2)),
    ],
)
def test_a_downsample_is_what_was_meant(base: Size, level: Size, downsample: Fraction) -> None:
    assert exact_downsample(base, level) == downsample


def test_thumbnail_shows_the_whole_slide() -> None:
    slide = computed(
        [Size(4000, 3000), Size(1000, 750)],
        lambda level, y, x: np.repeat((y * 255 // (3999 >> 2 * level)).astype(np.uint8)[..., None], 3, 2),
    )
    thumbnail = slide.thumbnail(200)
    assert thumbnail.shape == (200, 150, 3)
    assert max(box.area for box in slide._backend.boxes) <= 1000 * 750  # from the small level
    assert np.abs(thumbnail[:, 0, 0] - np.linspace(0, 255, 200)).max() < 2
    assert slide.thumbnail(10_000).shape == (4000, 3000, 3)


@pytest.mark.parametrize("reader", ["tifffile", "openslide"])
def test_a_damaged_region_fails_alone(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "a.svs", tissue(600, 700))
    if reader == "openslide":
        from wsi_stain.slide.readers.openslide import OpenSlideBackend

        monkeypatch.setattr("wsi_stain.slide.slide.open_backend", lambda path, *_: OpenSlideBackend(path))
    with Slide.open(path) as slide:
        expected = slide.at(None).read(Box(0, 0, 600, 700))
    damage(path, 8)
    with Slide.open(path) as slide, ThreadPoolExecutor(4) as threads:
        assert slide.backend == reader
        view = slide.at(None)

        def read(n: int) -> bool:
            if n % 3 == 0:
                with pytest.raises(
                    UnreadableRegion, match=r"a\.svs: x 260–270, y 130–140 of level 0 cannot be decoded"
                ) as caught:
                    view.read(Box(130, 260, 140, 270))
                assert (caught.value.box, caught.value.level) == (Box(130, 260, 140, 270), 0)
                return True
            box = [Box(0, 0, 128, 700), Box(256, 0, 600, 700)][n % 2]
            return np.array_equal(view.read(box), expected[box.slices()])

        assert all(threads.map(read, range(40)))


def test_a_broken_handle_is_replaced_once() -> None:
    slide = computed([Size(40, 50)])
    expected, read, calls = slide.at(None).read(Box(0, 0, 40, 50)), slide._backend.read, []

    def broken(level: int, box: Box) -> np.ndarray:
        calls.append("read")
        if "renew" not in calls:
            raise DecodeError("a stale handle")
        return read(level, box)

    slide._backend.read, slide._backend.renew = broken, lambda: calls.append("renew")
    np.testing.assert_array_equal(slide.at(None).read(Box(0, 0, 40, 50)), expected)
    assert calls == ["read", "renew", "read"]


def test_a_slide_cut_off_reads_up_to_the_cut(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", tissue(900, 700))
    with Slide.open(path) as slide:
        expected = slide.at(None).read(Box(0, 0, 128, 700))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with Slide.open(path) as slide:
        with pytest.raises(UnreadableRegion, match="bytes too early"):
            slide.at(None).read(Box(800, 0, 900, 700))
        np.testing.assert_array_equal(slide.at(None).read(Box(0, 0, 128, 700)), expected)
    path.write_bytes(data[:4] + (1 << 30).to_bytes(4, "little") + data[8:5000])  # an index at the end is lost first
    with pytest.raises(
        SlideError, match=r"^a\.svs cannot be opened \(its index of pages is missing\); .*copy it again"
    ):
        Slide.open(path)


def test_threads_read_what_one_thread_reads(tmp_path: Path) -> None:
    with Slide.open(write_svs(tmp_path / "a.svs", tissue(1500, 1700))) as slide, ThreadPoolExecutor(6) as threads:
        view = slide.at(0.43)
        whole = view.read(Box.of(view.size))
        rng = np.random.default_rng(1)
        boxes = [Box(y, x, y + 200, x + 150) for y, x in rng.integers(0, 600, (60, 2)).tolist()]
        for box, pixels in zip(boxes, threads.map(view.read, boxes), strict=True):
            np.testing.assert_array_equal(pixels, whole[box.slices()])


def test_a_pickled_view_reads_the_same(tmp_path: Path) -> None:
    with Slide.open(write_svs(tmp_path / "a.svs", tissue(400, 300)), mpp=0.4) as slide:
        view = slide.at(0.7)
        twin = pickle.loads(pickle.dumps(view))
        assert (twin.slide.mpp, twin.scale, twin.size) == (0.4, view.scale, view.size)
        np.testing.assert_array_equal(twin.read(Box.of(view.size)), view.read(Box.of(view.size)))
        twin.slide.close()


@pytest.mark.parametrize("at", [1, 2])
def test_a_slide_closed_while_it_is_read_is_not_taken_for_damaged(at: int) -> None:
    slide, calls = computed([Size(64, 64)]), []

    def closing(level: int, box: Box) -> np.ndarray:
        calls.append(box)
        if len(calls) == at:
            slide.close()
        raise DecodeError("seek of closed file")

    slide._backend.read = closing
    with pytest.raises(SlideError, match="is closed; open it again") as caught:
        slide.at(None).read(Box(0, 0, 8, 8))
    assert not isinstance(caught.value, UnreadableRegion)
    assert len(calls) == at


def test_a_closed_slide_says_so(tmp_path: Path) -> None:
    slide = Slide.open(write_svs(tmp_path / "a.svs", tissue(400, 300)))
    view = slide.at(None)
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="is closed") as caught:
        view.read(Box(0, 0, 9, 9))
    assert not isinstance(caught.value, UnreadableRegion)


@pytest.mark.parametrize("value", [1000, 0.00499, 0, -0.25, 10.01, 0.0499])
def test_an_absurd_mpp_names_property_value_rule_and_flag(value: float) -> None:
    slide = computed([Size(40, 50)], mpp=(value, value), mpp_from="openslide.mpp-x and openslide.mpp-y")
    assert slide.mpp_or_none is None
    with pytest.raises(SlideError) as caught:
        _ = slide.mpp
    for word in ("openslide.mpp-x", f"{value:.6g} µm/px", "between 0.05 and 10", "--mpp 0.25"):
        assert word in str(caught.value)
    assert slide.at(None).mpp is None
    with pytest.raises(SlideError, match="--mpp"):
        slide.at(0.5)


def test_a_missing_mpp_names_what_was_looked_for(tmp_path: Path) -> None:
    slide = computed([Size(40, 50)], mpp=None, mpp_from="openslide.mpp-x and openslide.mpp-y")
    with pytest.raises(
        SlideError, match=r"missing: openslide\.mpp-x and openslide\.mpp-y\); pass --mpp, for example --mpp 0\.25"
    ):
        slide.at(0.5)
    Image.fromarray(tissue(60, 50)).save(tmp_path / "a.png")
    with Slide.open(tmp_path / "a.png") as image:
        with pytest.raises(SlideError, match=r"a\.png has no pixel size \(the image format stores none\); pass --mpp"):
            _ = image.mpp
        np.testing.assert_array_equal(image.at(None).read(Box(0, 0, 60, 50)), tissue(60, 50))
    with Slide.open(tmp_path / "a.png", mpp=0.5) as image:
        assert image.at(1.0).size == Size(30, 25)


def test_small_differences_between_the_sides_of_a_pixel_are_averaged() -> None:
    assert computed([Size(40, 50)], mpp=(0.2500, 0.2502)).mpp == 0.2501
    assert computed([Size(40, 50)], mpp=(0.25280000000000002, 0.2528)).mpp == 0.2528


def test_oblong_pixels_are_read_as_squares_of_the_shorter_side() -> None:
    def ramp(level: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """µm along both axes: a px is 0.25 µm wide and 0.5 µm high."""
        return np.stack([(x + 0.5) * 0.25 * 2**level, (y + 0.5) * 0.5 * 2**level, 0 * y], -1).round().astype(np.uint8)

    slide = computed([Size(200, 300), Size(100, 150)], ramp, mpp=(0.25, 0.5))
    assert (slide.mpp, slide.size, slide.stored_size) == (0.25, Size(400, 300), Size(200, 300))
    assert "0.25 × 0.5 µm" in slide.notes[0]
    for mpp in (0.25, 0.5, 1.0, 0.7):
        view = slide.at(mpp)
        pixels = view.read(Box.of(view.size)).astype(float)
        for axis, n in ((0, view.size.w), (1, view.size.h)):
            centres = (np.arange(n) + 0.5) * mpp
            line = pixels[view.size.h // 2, :, 0] if axis == 0 else pixels[:, view.size.w // 2, 1]
            assert np.abs(line - centres)[2:-2].max() <= 1  # half a grey level each in source and result
        assert np.array_equal(view.read(Box(11, 13, 40, 55)), pixels[11:40, 13:55])
    assert computed([Size(200, 300)], ramp, mpp=(0.25, 0.5)).at(None).size == Size(400, 300)
    assert Slide(Path("x"), slide._backend, mpp=0.3).size == Size(200, 300)  # --mpp states square pixels


def test_the_scale_of_oblong_pixels_is_exact_far_from_the_origin() -> None:
    slide = computed([Size(50_000, 100_000)], address, mpp=(0.25, 0.5))
    view = slide.at(0.5)  # one stored row and two stored columns per pixel
    box = Box(49_900, 49_900, 49_964, 49_964)
    rows = np.mgrid[box.y0 : box.y1, box.x0 : box.x1][0]
    np.testing.assert_array_equal(view.read(box)[..., 0], rows & 255)


@pytest.mark.parametrize("value", [1000, 0, float("nan"), -1])
def test_an_absurd_flag_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(SlideError, match=r"--mpp is .* between 0\.05 and 10"):
        Slide.open(tmp_path / "a.svs", mpp=value)


def test_upsampling_is_refused_beyond_ten_percent() -> None:
    slide = computed([Size(400, 500)], mpp=(0.55, 0.55))
    assert slide.at(0.5).size == Size(440, 550)
    with pytest.raises(
        SlideError,
        match=r"has 0\.55 µm/px, more than 10 % coarser than the requested 0\.499 µm/px; pass --allow-upsampling",
    ):
        slide.at(0.499)
    assert slide.at(0.25, allow_upsampling=True).size == Size(880, 1100)


def test_an_icc_profile_is_applied_and_named() -> None:
    icc = profile(1.4)
    plain, slide = computed([Size(64, 64)]), computed([Size(64, 64)], icc=icc)
    raw = plain.at(None).read(Box(0, 0, 64, 64))
    expected = ImageCms.profileToProfile(
        Image.fromarray(raw), ImageCms.getOpenProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    )
    result = slide.at(None).read(Box(0, 0, 64, 64))
    assert np.abs(result.astype(int) - raw).mean() > 10
    np.testing.assert_array_equal(result, np.asarray(expected))
    assert plain.icc is None
    assert slide.icc
    assert slide.properties["icc"] == slide.icc


@pytest.mark.parametrize("icc", [profile(2.4), b"broken", profile(2.4)[:200]])
def test_srgb_and_broken_profiles_leave_the_pixels_alone(icc: bytes) -> None:
    slide = computed([Size(64, 64)], icc=icc)
    np.testing.assert_array_equal(
        slide.at(None).read(Box(0, 0, 64, 64)), computed([Size(64, 64)]).at(None).read(Box(0, 0, 64, 64))
    )
    assert slide.icc is None


def test_properties_are_technical_and_name_nobody(tmp_path: Path) -> None:
    with Slide.open(write_svs(tmp_path / "DOE_JANE.svs", tissue(600, 700), mpp=0.25)) as slide:
        assert slide.properties == {
            "backend": "tifffile",
            "vendor": "aperio",
            "format": "SVS",
            "codec": "JPEG",
            "levels": "2",
            "mpp": "0.25",
            "magnification": "20.0",
            "level 0": "700 × 600, downsample 1",
            "level 1": "175 × 150, downsample 4",
        }


def test_a_real_slide_reads_alike_at_every_scale(data: Path) -> None:
    with Slide.open(data / "slides/whole_stomach_HE.tif") as slide:
        assert slide.mpp == 0.2528
        fine = slide.at(0.2528 * 4).read(Box(1000, 1500, 1400, 1900)).astype(float)
        for mpp in (0.2528, 0.5056):
            view = slide.at(mpp)
            n = round(0.2528 * 4 / mpp)
            part = view.read(Box(1000, 1500, 1400, 1900).scaled(n)).reshape(400, n, 400, n, 3).mean(axis=(1, 3))
            shifted = np.abs(part[4:] - fine[:-4]).mean()
            assert np.abs(part - fine).mean() < min(9, shifted / 2)  # its writer made level 2 with a filter of its own
