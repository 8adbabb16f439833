"""Outputs with fluorescence channels: files, readers, rules."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders import bioformats_reader
from builders.pyramids import ArraySource, halve, metadata

from wsi_stain.config.channels import Channel, parse
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.composite import composite
from wsi_stain.output.channel_file import ChannelFile
from wsi_stain.output.encoding import Encoding, pad_tile
from wsi_stain.output.ometiff import describe, problems, write
from wsi_stain.output.pyramid import halve as fast_halve

CHANNELS = parse("DAPI,TRITC=FF8000,CD3,CD4,CD8,CD11c,CD14,CD16,CD20,CD34,CD38,CD45,CD56,CD68,CK,Ki67,PD1,PD-L1 β")
ENCODINGS = {"jpeg": Encoding(samples=1), "deflate": Encoding("deflate", samples=1)}


def panel(size: Size, count: int) -> np.ndarray:
    """Smooth blobs that differ from channel to channel, uint8 (h, w, count)."""
    y, x = np.ogrid[: size.h, : size.w]
    planes = [127 + 60 * np.sin(y / (40 + 5 * c) + c) + 60 * np.cos(x / (50 + 3 * c)) for c in range(count)]
    return np.dstack(planes).round().astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Path, ArraySource]]:
    folder, files = tmp_path_factory.mktemp("channels"), {}
    for name, count in [("jpeg", 18), ("deflate", 18), ("deflate", 1), ("jpeg", 2)]:
        path = folder / f"{name}-{count}.ome.tiff"
        source = ArraySource(panel(Size(777, 1031), count), ENCODINGS[name])
        write(path, source, metadata(path.name, stain="immune panel", channels=CHANNELS[:count]))
        files[name, count] = path, source
    return files


@pytest.fixture(params=[("jpeg", 18), ("deflate", 18), ("deflate", 1), ("jpeg", 2)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param


def close(seen: np.ndarray, painted: np.ndarray, *, exact: bool) -> bool:
    assert seen.shape == painted.shape
    errors = np.abs(seen.astype(int) - painted)
    return bool(errors.max() == 0 if exact else errors.mean(axis=(0, 1)).max() < 1.5)


@pytest.fixture(scope="module")
def in_bioformats(files, tmp_path_factory) -> dict[tuple[str, int], bioformats_reader.Seen]:
    seen = bioformats_reader.look([path for path, _ in files.values()], tmp_path_factory.mktemp("seen"))
    return dict(zip(files, seen, strict=True))


@pytest.mark.java
@pytest.mark.slow
def test_bioformats_sees_named_channels_with_colours(case, files, in_bioformats):
    (path, source), count, facts = files[case], case[1], in_bioformats[case].facts
    assert "error" not in facts, facts["error"]
    expected = {
        **{"format": "OME-TIFF", "series": "1", "images": str(count), "rgb_channels": "1", "channels": str(count)},
        **{"type": "uint8", "name": path.name, "mpp_x": "0.5", "mpp_y": "0.5", "magnification": "20.0"},
        **{"resolutions": str(len(source.sizes)), "schema_errors": "none"},
    }
    for number, channel in enumerate(CHANNELS[:count]):
        colour = int.from_bytes(bytes((*channel.colour, 255)), "big", signed=True)
        expected[f"channel{number}"] = f"{channel.name} {colour}"
    assert {key: facts[key] for key in expected} == expected


@pytest.mark.java
@pytest.mark.slow
def test_bioformats_decodes_every_channel_at_every_level(case, files, in_bioformats):
    _, source = files[case]
    levels = in_bioformats[case].levels
    assert len(levels) == len(source.levels)
    for seen, painted in zip(levels, source.levels, strict=True):
        assert close(seen, painted, exact=case[0] == "deflate")


def test_tifffile_sees_one_series_of_channels_with_a_pyramid(case, files):
    (path, source), (name, count) = files[case], case
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert len(tiff.series) == 1
        assert tiff.series[0].axes == ("YX" if count == 1 else "CYX")
        for level, painted in zip(tiff.series[0].levels, source.levels, strict=True):
            seen = level.asarray()
            seen = seen[..., None] if count == 1 else np.moveaxis(seen, 0, -1)
            assert close(seen, painted, exact=name == "deflate")


def test_no_rule_is_broken_and_the_channels_are_described(case, files):
    path, count = files[case][0], case[1]
    assert problems(path) == []
    facts = describe(path)
    assert facts["channels"] == [channel.name for channel in CHANNELS[:count]]
    assert (facts["photometric"], facts["stain"]) == ("black is zero", "immune panel")


def test_our_reader_gives_pixels_names_and_scale(case, files):
    (path, source), (name, count) = files[case], case
    file = ChannelFile.open(path)
    assert file
    assert file.channels == CHANNELS[:count]
    assert (file.mpp_or_none, file.levels) == (0.5, source.sizes)
    for level, painted in enumerate(source.levels):
        assert close(file.read(level, Box.of(file.levels[level])), painted, exact=name == "deflate")
    box = Box(500, 300, 600, 900)
    assert close(file.read(0, box), source.levels[0][box.slices()], exact=name == "deflate")


def test_colours_are_no_channels(tmp_path):
    path = tmp_path / "x.ome.tiff"
    write(path, ArraySource(np.zeros((9, 9, 3), np.uint8), Encoding("deflate")), metadata(path.name))
    assert ChannelFile.open(path) is None
    assert ChannelFile.open(tmp_path / "none.ome.tiff") is None
    (tmp_path / "y.ome.tiff").write_bytes(b"II*\0")
    assert ChannelFile.open(tmp_path / "y.ome.tiff") is None
    assert "channels" not in describe(path)


@pytest.mark.parametrize(
    ("old", "new", "rule", "words"),
    [
        ('SizeC="3"', 'SizeC="2"', 3, "SizeC is 2"),
        ('IFD="1"', 'IFD="2"', 3, "pages of 3 channels"),
        ('Interleaved="false"', 'Interleaved="true"', 3, "Interleaved is true"),
        (' Name="CD3"', "", 3, "opens as fluorescence"),
    ],
)
def test_a_broken_panel_is_reported(tmp_path, old, new, rule, words):
    path = tmp_path / "x.ome.tiff"
    write(path, ArraySource(panel(Size(60, 70), 3), ENCODINGS["deflate"]), metadata(path.name, channels=CHANNELS[:3]))
    text = tifffile.tiffcomment(path) or ""
    assert old in text
    tifffile.tiffcomment(path, text.replace(old, new).encode())
    assert any(p.rule == rule and words in p.message for p in problems(path)), problems(path)


def test_missing_and_unlike_pages_are_reported(tmp_path):
    path = tmp_path / "x.ome.tiff"
    source = ArraySource(panel(Size(60, 70), 3), ENCODINGS["deflate"])
    write(path, source, metadata(path.name, channels=CHANNELS[:3]))
    text = tifffile.tiffcomment(path) or ""
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0].asarray()
    options = {"metadata": None, "compression": "adobe_deflate", "photometric": "minisblack"}
    for name, others in (("few", [first]), ("unlike", [first, first[:50]])):
        out = tmp_path / f"{name}.ome.tiff"
        with tifffile.TiffWriter(out, bigtiff=True, ome=False) as writer:
            writer.write(first, tile=(512, 512), description=text.encode(), **options)
            for page in others:
                writer.write(page, tile=(512, 512), **options)
    assert any("2 pages for 3 channels" in p.message for p in problems(tmp_path / "few.ome.tiff"))
    assert any("differ from those of the first" in p.message for p in problems(tmp_path / "unlike.ome.tiff"))


def test_grey_planes_named_after_colours_are_an_rgb_image_split_by_mistake(tmp_path):
    path = tmp_path / "x.ome.tiff"
    channels = parse("Red=FF0000,Green=00FF00,Blue=0000FF")
    write(path, ArraySource(panel(Size(60, 70), 3), ENCODINGS["deflate"]), metadata(path.name, channels=channels))
    assert any(p.rule == 3 and "opens as fluorescence" in p.message for p in problems(path))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 18])
@pytest.mark.parametrize("size", [Size(64, 64), Size(7, 9), Size(1, 5)])
def test_reducing_and_padding_treat_every_channel_alone(count, size):
    pixels = np.random.default_rng(count).integers(0, 256, (*size, count), np.uint8)
    assert np.array_equal(fast_halve(pixels), halve(pixels))
    padded = pad_tile(pixels, 64)
    assert np.array_equal(padded, np.pad(pixels, ((0, 64 - size.h), (0, 64 - size.w), (0, 0)), "edge"))


def test_a_composite_shows_each_channel_in_its_colour():
    channels = [Channel("a", (255, 0, 0)), Channel("b", (0, 128, 255)), Channel("c", (0, 255, 0))]
    pixels = np.array([[[200, 0, 0], [0, 255, 0], [100, 50, 20], [0, 0, 0]]], np.uint8)
    shown = composite(pixels, channels)
    assert shown[0].tolist() == [[200, 0, 0], [0, 128, 255], [100, 25, 50], [0, 0, 0]]


def test_the_same_panel_gives_the_same_bytes(tmp_path):
    source = ArraySource(panel(Size(700, 600), 3), ENCODINGS["jpeg"])
    plain = metadata("x.ome.tiff", channels=CHANNELS[:3])
    write(tmp_path / "a", source, plain)
    write(tmp_path / "b", source, dataclasses.replace(plain))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
