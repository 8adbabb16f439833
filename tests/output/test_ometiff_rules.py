"""Every rule that `problems` checks, broken on purpose: exactly that rule is reported."""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from builders.pyramids import ArraySource, halve, metadata, paint

from wsi_stain.geometry import Box, Size
from wsi_stain.output.encoding import Encoding, pad_tile
from wsi_stain.output.ometiff import NOTICE, Roi, problems, write
from wsi_stain.output.ometiff.tiff import PHOTOMETRIC, Tiff
from wsi_stain.output.ometiff.xml import build

NAME = "slide.ome.tiff"
PICTURE = paint(Size(600, 700))
LEVELS = (PICTURE, halve(PICTURE))
JPEG, LOSSLESS = Encoding(), Encoding("deflate")
Breaker = Callable[[Path], None]


def make(path: Path, levels: Any = LEVELS, encoding: Encoding | None = None, **changes: Any) -> None:
    """A good file, but for the changes.

    Args:
        path: the file.
        levels: pixels of every level.
        encoding: as in good files.
        changes: `encode` (pixels of a tile to bytes; None lets tifffile encode), `pad`, `subifds`, `text` (the
            description), `big`, `first` and `lower` (arguments for tifffile, of level 0 and of the others), `every` (of
            both), `after` (pages behind).
    """
    encoding = encoding or LOSSLESS
    encode = changes.get("encode", encoding.encode)
    pad = changes.get("pad", pad_tile)
    has_subifds = changes.get("subifds", True)
    text = changes.get("text", build(metadata(NAME), Size(*levels[0].shape[:2])))
    with tifffile.TiffWriter(path, bigtiff=changes.get("big", True), ome=False, shaped=False) as writer:
        for number, pixels in enumerate(levels):
            px_per_cm = 20000 * max(pixels.shape) / max(levels[0].shape)
            options = {"tile": (512, 512), "metadata": None, "resolution": (px_per_cm,) * 2, "resolutionunit": 3}
            options |= encoding.tifffile_options() | changes.get("every", {})
            if number:
                options |= {"subfiletype": 1} | changes.get("lower", {})
            else:
                options |= {"description": text, "subifds": (len(levels) - 1) * has_subifds} | changes.get("first", {})
            tiles = [
                encode(pad(pixels[y : y + 512, x : x + 512]))
                for y in range(0, pixels.shape[0], 512)
                for x in range(0, pixels.shape[1], 512)
                if encode
            ]
            data = iter(tiles) if tiles else pixels
            writer.write(data, shape=pixels.shape if tiles else None, dtype=pixels.dtype, **options)
        for page in changes.get("after", ()):
            writer.write(page, photometric="rgb", metadata=None)


def made(levels: Any = LEVELS, encoding: Encoding | None = None, **changes: Any) -> Breaker:
    return lambda path: make(path, levels, encoding, **changes)


def said(old: str, new: str, **changes: Any) -> Breaker:
    """A good file whose OME-XML says `new` where it said `old`."""

    def breaker(path: Path) -> None:
        text = build(dataclasses.replace(metadata(NAME), **changes), Size(600, 700)).decode()
        assert old in text, text
        make(path, text=text.replace(old, new).encode())

    return breaker


def patched(tag: int, value: int, encoding: Encoding = LOSSLESS, level: int = 0) -> Breaker:
    """A good file, one tag of which says another value."""

    def breaker(path: Path) -> None:
        make(path, encoding=encoding)
        with Tiff.open(path) as tiff:
            place = (tiff.pages[0], *tiff.reduced(tiff.pages[0]))[level]._entries[tag].place
        with path.open("r+b") as file:
            file.seek(place)
            file.write(struct.pack("<H", value))

    return breaker


def cut(at: float) -> Breaker:
    """A good file that ends early."""

    def breaker(path: Path) -> None:
        make(path, encoding=JPEG)
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * at))

    return breaker


def jpeg(colours: str, subsampling: str) -> Callable[[np.ndarray], bytes]:
    return lambda tile: imagecodecs.jpeg8_encode(
        tile, colorspace="RGB", outcolorspace=colours, subsampling=subsampling, level=90
    )


def unmarked(tile: np.ndarray) -> bytes:
    """An RGB JPEG as Aperio writes it: without the marker, and with components named 0, 1, 2."""
    stream = jpeg("RGB", "444")(tile)
    assert stream[2:4] == b"\xff\xee"
    stream = stream[:2] + stream[18:]
    for old, new in zip(b"RGB", range(3), strict=True):
        stream = stream.replace(bytes([old, 0x11, 0]), bytes([new, 0x11, 0]))
        scan = stream.index(b"\xff\xda")
        stream = (
            stream[:scan] + stream[scan : scan + 14].replace(bytes([old, 0]), bytes([new, 0])) + stream[scan + 14 :]
        )
    return stream


def pad_black(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[:2]
    return np.pad(pixels, ((0, 512 - h), (0, 512 - w), (0, 0)))


def emptied(path: Path) -> None:
    make(path)
    with Tiff.open(path) as tiff:
        place = tiff.pages[0]._entries[325].place
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\0" * 4)


def stamped(path: Path) -> None:
    make(path, first={"datetime": "2024:05:17 12:00:00"})


NOISE = np.random.default_rng(5).integers(90, 250, (600, 700, 3), dtype=np.uint8)
DARK = np.zeros_like(PICTURE)
PLANES = [np.moveaxis(pixels, 2, 0) for pixels in LEVELS]
SQUARES = [paint(Size(1024, 1024)), halve(paint(Size(1024, 1024)))]
WIDE = paint(Size(400, 1100))
TWO_IMAGES = '<Image ID="Image:1"><Pixels ID="Pixels:1"/></Image><StructuredAnnotations>'
CHANNEL = '<Channel ID="Channel:0:0" SamplesPerPixel="3" />'
ROI = (Roi("here", Box(0, 0, 10, 10)),)

BROKEN: list[tuple[str, str, int, Breaker]] = [
    (
        "file name inside",
        "error",
        1,
        said('"1" />', '"1"><UUID FileName="other.ome.tiff">urn:uuid:0</UUID></TiffData>'),
    ),
    ("own name inside", "warning", 1, said('"1" />', f'"1"><UUID FileName="{NAME}">urn:uuid:0</UUID></TiffData>')),
    ("cut in the tiles", "error", 1, cut(0.95)),
    ("cut in level 0", "error", 1, cut(0.3)),
    ("cut in the first page", "error", 1, cut(0.01)),
    ("empty", "error", 1, lambda path: path.write_bytes(b"") and None),
    ("empty tile", "error", 1, emptied),
    ("garbage for tiles", "error", 1, made(encode=lambda tile: b"garbage" * 9)),
    ("garbage for JPEG", "error", 1, made(encoding=JPEG, encode=lambda tile: JPEG.encode(tile)[:700])),
    ("no TIFF", "error", 2, lambda path: path.write_text("<html>no slide here</html>") and None),
    ("classic", "warning", 2, made(big=False)),
    ("no OME-XML", "error", 3, made(text=b"a slide")),
    ("broken OME-XML", "error", 3, said("</OME>", "")),
    ("entities", "error", 3, said("<OME", '<!DOCTYPE OME [<!ENTITY a "b">]><OME')),
    ("two images", "error", 3, said("<StructuredAnnotations>", TWO_IMAGES)),
    ("three channels", "error", 3, said(CHANNEL, '<Channel ID="1"/><Channel ID="2"/><Channel ID="3"/>')),
    ("wrong type", "error", 3, said('Type="uint8"', 'Type="uint16"')),
    ("wrong width", "error", 3, said('SizeX="700"', 'SizeX="701"')),
    ("wrong plane", "error", 3, said('IFD="0"', 'IFD="1"')),
    ("old schema", "warning", 3, said('xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"', 'xmlns="2013"')),
    ("not interleaved", "warning", 3, said('Interleaved="true"', 'Interleaved="false"')),
    ("escaped unit", "error", 3, said("µ", "&#181;")),
    ("16 bits", "error", 4, made([p.astype(np.uint16) for p in LEVELS], encode=None)),
    (
        "planes",
        "error",
        4,
        made(PLANES, encode=None, every={"planarconfig": "separate"}, text=build(metadata(NAME), Size(600, 700))),
    ),
    ("CMYK", "error", 4, patched(PHOTOMETRIC, 5)),
    ("flat pages", "error", 5, made(subifds=False)),
    ("no pyramid", "error", 5, made(LEVELS[:1])),
    ("smallest first", "error", 5, made([PICTURE, halve(LEVELS[1]), LEVELS[1]])),
    ("unmarked level", "warning", 5, made(lower={"subfiletype": 0})),
    ("factor 4", "warning", 6, made([PICTURE, halve(LEVELS[1])])),
    ("stops early", "warning", 6, made([WIDE, halve(WIDE)])),
    ("strips", "error", 7, made(encode=None, every={"tile": None, "rowsperstrip": 64})),
    ("small tiles", "warning", 7, made(SQUARES, encode=None, every={"tile": (256, 256)})),
    ("zstd", "error", 8, made(encode=None, every={"compression": "zstd"})),
    ("webp", "error", 8, made(encode=None, every={"compression": "webp", "predictor": None})),
    ("not compressed", "warning", 8, made(SQUARES, encode=None, every={"compression": None, "predictor": None})),
    ("4:4:4", "error", 9, made(encoding=JPEG, encode=jpeg("YCBCR", "444"), every={"subsampling": (1, 1)})),
    ("4:2:2 under 4:2:0", "error", 10, made(encoding=JPEG, encode=jpeg("YCBCR", "422"))),
    ("YCbCr under RGB", "error", 10, patched(PHOTOMETRIC, 2, JPEG)),
    ("RGB under YCbCr", "error", 10, made(encoding=JPEG, encode=jpeg("RGB", "444"))),
    ("wrong tile size", "error", 10, made(encoding=JPEG, encode=lambda tile: jpeg("YCBCR", "420")(tile[:256]))),
    ("grey", "error", 10, made(encoding=JPEG, encode=lambda tile: imagecodecs.jpeg8_encode(tile[..., 0].copy()))),
    ("unmarked RGB", "warning", 10, made(encoding=Encoding(subsampling="rgb"), encode=unmarked)),
    ("no scale", "warning", 11, said("PhysicalSize", "Measure")),
    ("scale of one axis", "warning", 11, said('PhysicalSizeY="0.5" ', "")),
    ("pixels as unit", "warning", 11, said('XUnit="µm"', 'XUnit="pixel"')),
    ("other resolution", "warning", 11, made(first={"resolution": (10000, 20000)})),
    ("no resolution", "warning", 11, made(lower={"resolution": (1, 1), "resolutionunit": 1})),
    ("same resolution on all levels", "warning", 11, made(every={"resolution": (20000, 20000)})),
    ("absurd scale", "warning", 11, lambda path: write(path, ArraySource(PICTURE, JPEG), metadata(NAME, mpp=1000.0))),
    ("no objective", "warning", 12, said('<Objective ID="Objective:0:0" NominalMagnification="20" />', "")),
    ("nobody uses the objective", "warning", 12, said('<ObjectiveSettings ID="Objective:0:0" />', "")),
    ("other title", "warning", 13, said(f'Name="{NAME}"', 'Name="Image0"')),
    ("black", "warning", 14, made([DARK, halve(DARK)])),
    ("black padding", "warning", 15, made(pad=pad_black)),
    ("black padding in JPEG", "warning", 15, made(encoding=JPEG, pad=pad_black)),
    ("every second pixel", "warning", 16, made([NOISE, NOISE[::2, ::2]])),
    ("every second pixel in JPEG", "warning", 16, made([NOISE, NOISE[::2, ::2]], JPEG)),
    ("profile", "warning", 17, made(first={"iccprofile": b"a profile"})),
    ("label", "error", 19, made(after=[paint(Size(300, 90))])),
    ("people", "warning", 19, said("<Instrument ", '<Experimenter LastName="Doe"/><Instrument ')),
    ("the scanner's text", "warning", 19, said("wsi-stain/prov", "openmicroscopy.org/OriginalMetadata/prov")),
    ("no notice", "error", 20, said(NOTICE, "IHC")),
    ("no model", "error", 20, said('K="model_sha256"', 'K="model_hash"')),
    ("region outside", "warning", 21, said('Width="10"', 'Width="701"', rois=ROI)),
    ("region that nobody refers to", "warning", 21, said('<ROIRef ID="ROI:0" />', "", rois=ROI)),
    ("time", "warning", 22, stamped),
    (
        "date",
        "warning",
        22,
        said("<Description>", "<AcquisitionDate>2024-05-17T12:00:00</AcquisitionDate><Description>"),
    ),
    ("random identity", "warning", 22, said("", "", uuid="0b5c5b0e-6c3f-4a51-9d0c-0d8f6b1f7a11")),
]


@pytest.mark.parametrize(("severity", "rule", "breaker"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_rule_is_reported_and_no_other(tmp_path, severity, rule, breaker):
    path = tmp_path / NAME
    breaker(path)
    actual = problems(path)
    assert {(p.severity, p.rule) for p in actual} == {(severity, rule)}, actual
    for problem in actual:
        assert ":" in problem.message, "a sentence ends with the next step"
        assert len(problem.message) < 160


@pytest.mark.parametrize("encoding", [JPEG, Encoding(subsampling="rgb"), LOSSLESS], ids=str)
def test_the_files_of_this_table_are_good_when_nothing_is_broken(tmp_path, encoding):
    make(tmp_path / NAME, encoding=encoding)
    assert problems(tmp_path / NAME) == []


@pytest.mark.parametrize("name", ["slide.tiff", "slide.ome.tiff.part.old", "slide.svs"])
def test_the_name_must_end_in_ome_tiff(tmp_path, name):
    make(tmp_path / name)
    assert [(p.severity, p.rule) for p in problems(tmp_path / name)] == [("error", 1), ("warning", 13)]


def test_a_file_that_is_not_there_is_reported(tmp_path):
    assert [(p.severity, p.rule) for p in problems(tmp_path / NAME)] == [("error", 1)]


def test_an_unfinished_file_is_judged_by_the_name_it_will_have(tmp_path):
    part = tmp_path / "anything.tmp"
    make(part)
    assert problems(part, name=NAME) == []
    part.rename(tmp_path / f"{NAME}.part")
    assert problems(tmp_path / f"{NAME}.part") == []


def test_rules_for_virtual_stains_hold_for_ours_alone(tmp_path):
    path = tmp_path / NAME
    text = build(metadata(NAME), Size(600, 700)).decode()
    foreign = text.replace('Creator="wsi-stain', 'Creator="a scanner').replace(NOTICE, "IHC").replace("UUID=", "ID=")
    make(path, text=foreign.encode(), first={"datetime": "2024:05:17 12:00:00"})
    assert problems(path) == []


def test_a_linked_pyramid_is_as_good_as_an_unlinked_one(tmp_path):
    path = tmp_path / NAME
    write(path, ArraySource(paint(Size(1500, 600)), JPEG), metadata(NAME), compat_openslide=True)
    with Tiff.open(path) as tiff:
        assert len(tiff.pages) == 3
    assert problems(path) == []


def test_pages_that_lead_in_a_circle_are_reported(tmp_path):
    path = tmp_path / NAME
    make(path)
    with Tiff.open(path) as tiff:
        page = tiff.pages[0]
    with path.open("r+b") as file:
        file.seek(page.next_pointer)
        file.write(struct.pack("<Q", page.offset))
    assert [(p.severity, p.rule) for p in problems(path)] == [("error", 1)]


def test_big_endian_and_foreign_tile_orders_are_read_alike(tmp_path):
    path = tmp_path / NAME
    text = build(metadata(NAME), Size(600, 700))
    with tifffile.TiffWriter(path, bigtiff=True, byteorder=">", ome=False, shaped=False) as writer:
        for level, pixels in enumerate(LEVELS):
            first = {"description": text, "subifds": 1} if not level else {"subfiletype": 1}
            writer.write(
                pixels,
                **{"tile": (512, 512), "photometric": "rgb", "compression": "lzw", "predictor": True, "metadata": None},
                **{"resolution": (20000 / 2**level,) * 2, "resolutionunit": 3, **first},
            )
    actual = problems(path)
    assert [p.rule for p in actual] == [15], "tifffile pads with black; all else is well"


@pytest.mark.parametrize("encoding", [Encoding(quality=30), LOSSLESS], ids=["jpeg", "deflate"])
def test_no_damage_raises(tmp_path, encoding):
    path, rng = tmp_path / NAME, np.random.default_rng(3)
    make(path, encoding=encoding)
    good = path.read_bytes()
    with Tiff.open(path) as tiff:
        tables = [page.offset for page in (tiff.pages[0], *tiff.reduced(tiff.pages[0]))]
    for _ in range(80):
        bad = bytearray(good)
        for _ in range(3):
            bad[tables[rng.integers(2)] + int(rng.integers(400))] = int(rng.integers(256))
        path.write_bytes(bad)
        for problem in problems(path):
            assert problem.severity in ("error", "warning")


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 25))
def test_every_cut_is_noticed(tmp_path, share):
    path = tmp_path / NAME
    cut(share)(path)
    assert any(p.severity == "error" for p in problems(path))


def test_real_files_of_others_are_judged_without_a_crash(data):
    verdicts = {path.name: problems(path) for path in (data / "slides").iterdir() if path.is_file()}
    assert all(any(p.severity == "error" for p in actual) for actual in verdicts.values())
    assert {p.rule for p in verdicts["CMU-1-Small-Region.svs"]} >= {1, 3, 5, 19}
    assert 8 in {p.rule for p in verdicts["wsic_CMU-1-Small-Region.webp.tiff"]}
    assert 10 in {p.rule for p in verdicts["wsic_XYC_jpeg_pyramid.ome.tiff"]}
