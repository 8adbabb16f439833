"""Formats whose container is TIFF: Aperio, Leica, Philips, Ventana, Trestle, Huron, Argos, and no vendor's.

Written from OpenSlide's descriptions of the formats (openslide.org/formats) and the TIFF specification.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from builders.formats.picture import TILE, WHITE, Built, jpeg, picture, reduced, tiles

LABEL, MACRO = np.full((60, 40, 3), 200, np.uint8), np.full((48, 128, 3), 180, np.uint8)


def level(tiff: tifffile.TiffWriter, pixels: np.ndarray, *, absent: tuple[int, ...] = (), **options: object) -> None:
    """A tiled page of YCbCr JPEGs; the tiles of the numbers `absent` have no bytes."""
    encode: Callable[[np.ndarray], bytes] = options.pop("encode", jpeg)  # type: ignore[assignment]
    if "compression" not in options:
        options |= {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)}
    data = (b"" if n in absent else encode(tile) for n, tile in enumerate(tiles(pixels)))
    tiff.write(data, shape=pixels.shape, dtype="uint8", tile=(TILE, TILE), metadata=None, **options)


def small(tiff: tifffile.TiffWriter, pixels: np.ndarray, text: str | None = None, **options: object) -> None:
    """A page in strips: thumbnail, label or macro."""
    tiff.write(
        pixels, photometric="rgb", compression="lzw", rowsperstrip=32, metadata=None, description=text, **options
    )


def per_cm(mpp: float, factor: int = 1) -> dict[str, object]:
    """Resolution tags."""
    return {"resolution": (1e4 / mpp / factor,) * 2, "resolutionunit": "CENTIMETER"}


def j2k(tile: np.ndarray) -> bytes:
    """A lossless JPEG 2000 stream of RGB."""
    return imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", mct=False, reversible=True)


def aperio(path: Path, *, lossless: bool = False, factors: tuple[int, ...] = (4, 16)) -> Built:
    """SVS with levels whose sizes are rounded down, a thumbnail, a label and a macro."""
    truth = picture(1027, 1301)
    h, w = truth.shape[:2]
    text = f"Aperio Image Library v12\r\n{w}x{h} [0,0 {w}x{h}] (256x256) J2K/KDU Q=95|AppMag = 40|MPP = 0,2525"
    codec = {"encode": j2k, "compression": 33005, "photometric": "rgb"} if lossless else {}
    with tifffile.TiffWriter(path) as tiff:
        level(tiff, truth, description=text, **codec)
        small(tiff, reduced(truth, 8), text)
        for factor in factors:
            level(tiff, reduced(truth, factor), description=text, **codec)
        small(tiff, LABEL, "Aperio\r\nlabel 40x60", subfiletype=1)
        small(tiff, MACRO, "Aperio\r\nmacro 128x48", subfiletype=9)
    return Built(
        path,
        truth,
        0.2525,
        40,
        format=f"Aperio SVS, levels /{factors[0]} and /{factors[1]}",
        codec="JPEG 2000" if lossless else "JPEG",
    )


def leica(
    path: Path,
    *,
    areas: tuple[tuple[int, int, int, int], ...],
    objectives: tuple[int, ...] = (20,),
    absent: dict[int, tuple[int, ...]] | None = None,
) -> Built:
    """SCN with a macro image and scanned areas (x, y, w, h in px of the glass); every area's objective in turn.

    `absent` lists tiles without bytes by their page: the macro is page 0, the levels of the areas follow.
    """
    mpp, background = 0.5, (26_000_000, 76_000_000)
    right, bottom = (max(a[i] + a[i + 2] for a in areas) for i in (0, 1))
    left, top = (min(a[i] for a in areas) for i in (0, 1))
    canvas = picture(bottom - top, right - left)
    truth = np.full_like(canvas, WHITE)
    pages, images = [np.full((760, 260, 3), 220, np.uint8)], [_scn_image(0, (0, 0, *background), [(260, 760)], "0.6")]
    for number, (x, y, w, h) in enumerate(areas):
        part = np.s_[y - top : y - top + h, x - left : x - left + w]
        truth[part] = canvas[part]
        levels = [canvas[part] if factor == 1 else reduced(canvas[part], factor) for factor in (1, 4, 16)]
        sizes = [(one.shape[1], one.shape[0]) for one in levels]
        view = tuple(round(v * mpp * 1000) for v in (x, y, w, h))
        images.append(_scn_image(len(pages), view, sizes, str(objectives[number % len(objectives)])))
        pages += levels
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="built" '
        f'uuid="u" sizeX="{background[0]}" '
        f'sizeY="{background[1]}"><barcode>MA==</barcode>{"".join(images)}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, pixels in enumerate(pages):
            gone = (absent or {}).get(number, ())
            level(tiff, pixels, description=text if number == 0 else None, absent=gone)
    return Built(
        path,
        truth,
        mpp,
        objectives[0],
        (left, top, right - left, bottom - top),
        format=f"Leica SCN, areas: {len(areas)}",
    )


def _scn_image(ifd: int, view: tuple[int, ...], sizes: list[tuple[int, int]], objective: str) -> str:
    x, y, w, h = view
    levels = "".join(f'<dimension sizeX="{a}" sizeY="{b}" r="{r}" ifd="{ifd + r}"/>' for r, (a, b) in enumerate(sizes))
    return (
        f'<image name="i{ifd}" uuid="u{ifd}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
        '<device model="m" version="1"/>'
        f'<pixels sizeX="{sizes[0][0]}" sizeY="{sizes[0][1]}">{levels}</pixels>'
        f'<view sizeX="{w}" sizeY="{h}" offsetX="{x}" offsetY="{y}"/><scanSettings><objectiveSettings>'
        f"<objective>{objective}</objective></objectiveSettings><illuminationSettings><numericalAperture>0.5"
        "</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
        "</image>"
    )


def philips(path: Path) -> Built:
    """Philips TIFF: levels padded to whole tiles, and tiles of level 0 that were not scanned."""
    mpp, absent = 0.25, (2, 3)
    truth = picture(4 * TILE, 4 * TILE)
    truth[:TILE, 2 * TILE :] = WHITE
    levels = [np.pad(p, ((0, -len(p) % TILE), (0, -len(p) % TILE), (0, 0)), constant_values=WHITE) for p in
              (truth, *(reduced(truth, factor) for factor in (2, 4, 8)))]  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, pixels in enumerate(levels):
            options = {"description": _philips_xml(levels, mpp), "software": "Philips DP v1.0"} if not number else {}
            level(tiff, pixels, absent=absent if not number else (), subfiletype=int(number > 0), **options)
        small(tiff, LABEL, "Label")
        small(tiff, MACRO, "Macro")
    return Built(path, truth, mpp, 40, format="Philips TIFF")


def _philips_xml(levels: list[np.ndarray], mpp: float) -> str:
    def item(name: str, kind: str, value: object) -> str:
        return f'<Attribute Name="{name}" Group="0x1" Element="0x1" PMSVR="{kind}">{value}</Attribute>'

    def spacing(factor: int) -> str:
        mm = f"&quot;{mpp * factor / 1000:.8f}&quot;"
        return item("DICOM_PIXEL_SPACING", "IDoubleArray", f"{mm} {mm}")

    described = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(2**n)}'
        + item("PIIM_DP_PIXEL_DATA_REPRESENTATION_NUMBER", "IUInt16", n)
        + item("PIIM_PIXEL_DATA_REPRESENTATION_COLUMNS", "IUInt32", pixels.shape[1])
        + item("PIIM_PIXEL_DATA_REPRESENTATION_ROWS", "IUInt32", pixels.shape[0])
        + "</DataObject>"
        for n, pixels in enumerate(levels)
    )
    wsi = (
        f'<DataObject ObjectType="DPScannedImage">{item("PIM_DP_IMAGE_TYPE", "IString", "WSI")}{spacing(1)}'
        + item("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "IDataObjectArray", f"<Array>{described}</Array>")
        + item("DICOM_DERIVATION_DESCRIPTION", "IString", "levels=40,10003,10002,10001")
        + "</DataObject>"
    )
    return (
        f'<?xml version="1.0"?><DataObject ObjectType="DPUfsImport">{item("DICOM_MANUFACTURER", "IString", "PHILIPS")}'
        + spacing(1)
        + item("PIM_DP_SCANNED_IMAGES", "IDataObjectArray", f"<Array>{wsi}</Array>")
        + "</DataObject>"
    )


def ventana(path: Path, *, direction: str = "RIGHT", codec: str = "JPEG") -> Built:
    """BIF: one area of camera tiles that overlap, numbered in serpentines from the bottom left.

    `direction="LEFT"` is how the DP 200 lists the joints, which OpenSlide 4.0.1 refuses.
    """
    mpp, columns, rows, over_x, over_y = 0.2325, 5, 4, 24, 16
    step_x, step_y = TILE - over_x, TILE - over_y
    truth = picture((rows - 1) * step_y + TILE, (columns - 1) * step_x + TILE)
    grid = np.zeros((rows * TILE, columns * TILE, 3), np.uint8)
    for r in range(rows):
        for c in range(columns):
            tile = truth[r * step_y : r * step_y + TILE, c * step_x : c * step_x + TILE]
            grid[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE] = tile

    def index(c: int, r: int) -> int:
        up = rows - 1 - r
        return up * columns + (c if up % 2 == 0 else columns - 1 - c) + 1

    def joint(kind: str, one: int, two: int, x: int, y: int) -> str:
        return (
            f'<TileJointInfo FlagJoined="1" Confidence="99" Direction="{kind}" Tile1="{one}" Tile2="{two}" '
            f'OverlapX="{x}" OverlapY="{y}"/>'
        )

    across = [
        joint(direction, index(c, r), index(c + 1, r), over_x, 0) for r in range(rows) for c in range(columns - 1)
    ]
    along = [joint("UP", index(c, r), index(c, r - 1), 0, over_y) for r in range(1, rows) for c in range(columns)]
    info = (
        f'<ImageInfo AOIScanned="1" AOIIndex="0" NumRows="{rows}" NumCols="{columns}" Width="{TILE}" Height="{TILE}" '
        f'Pos-X="0" Pos-Y="0">{"".join(across + along)}</ImageInfo>'
    )
    encoding = (
        f'<EncodeInfo Ver="2"><SlideStitchInfo>{info}</SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/>'
        "</AoiOrigin></EncodeInfo>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        scan = f'<iScan Magnification="40" ScanRes="{mpp}" UnitNumber="1" BuildVersion="3"/>'
        small(tiff, LABEL, "Label_Image", extratags=[_xmp(scan)])
        small(tiff, reduced(grid, 16), "Thumbnail")
        for number, factor in enumerate((1, 2, 4)):
            text = f"level={number} mag={40 / factor:g} quality=95"
            tags = [_xmp(encoding)] if number == 0 else []
            level(tiff, grid if factor == 1 else reduced(grid, factor), description=text, extratags=tags)
    return Built(path, truth, mpp, 40, format="Ventana BIF", codec=codec)


def _xmp(text: str) -> tuple[int, int, int, bytes, bool]:
    data = text.encode() + b"\0"
    return 700, 1, len(data), data, True


def trestle(path: Path) -> Built:
    """MedScan TIFF: tiles of level 0 overlap, and the resolution tags hold µm per px."""
    mpp, over, columns, rows = 0.5, 32, 5, 4
    step = TILE - over
    truth = picture((rows - 1) * step + TILE, (columns - 1) * step + TILE)
    grid = np.zeros((rows * TILE, columns * TILE, 3), np.uint8)
    for n in range(rows * columns):
        r, c = divmod(n, columns)
        tile = truth[r * step : r * step + TILE, c * step : c * step + TILE]
        grid[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE] = tile
    text = {"description": f"Background Color=FFFFFF;Objective Power=20;OverlapsXY={over} {over} 0 0"}
    with tifffile.TiffWriter(path) as tiff:
        level(tiff, grid, software="MedScan 1", resolution=(mpp, mpp), resolutionunit="NONE", **text)
        level(tiff, reduced(truth, 4), software="MedScan 1", **text)
    return Built(path, truth, mpp, 20, format="Trestle TIFF")


def plain(path: Path, *, vendor: str = "") -> Built:
    """A tiled pyramid, of no vendor, Huron's or Argos'."""
    mpp, truth = 0.4, picture(900, 1100)
    first: dict[str, object] = {}
    if vendor == "Huron":
        first = {"description": f"Resolution = {mpp} um\n", "extratags": [(271, 2, 0, "Huron", True)]}
    if vendor == "Argos":
        scan = "<ObjectiveMagnification>40</ObjectiveMagnification><MinZ>0</MinZ><MaxZ>0</MaxZ>"
        xml = f"<Argos.Scan.Metadata>{scan}</Argos.Scan.Metadata>"
        first = {"extratags": [(65000, 2, 0, xml, True)]}
    with tifffile.TiffWriter(path) as tiff:
        level(tiff, truth, **per_cm(mpp), **first)
        if vendor == "Huron":
            small(tiff, reduced(truth, 8))
        level(tiff, reduced(truth, 4), **({} if vendor else {"subfiletype": 1}))
        if vendor == "Argos":
            small(tiff, reduced(truth, 8), "Thumbnail")
    return Built(path, truth, mpp, 40 if vendor == "Argos" else None, format=f"{vendor or 'Pyramidal'} TIFF")


def ome(path: Path, *, planes: int = 1, macro_first: bool = False, unit: str = "µm") -> Built:
    """OME-TIFF with levels in SubIFDs; of several planes the middle one shows the picture, the others its negative."""
    mpp, truth = 0.4, picture(700, 900)
    size = mpp / {"µm": 1, "Å": 1e-4, "nm": 1e-3, "in": 25400}[unit]
    axes = {"axes": "ZYXS" if planes > 1 else "YXS", "Name": "region"}
    scale = {f"PhysicalSize{axis}": size for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    options: dict = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        if macro_first:
            coarse = {"axes": "YXS", "PhysicalSizeX": 16.0, "PhysicalSizeY": 16.0, "Name": "whole glass"}
            tiff.write(np.full((1400, 500, 3), (200, 40, 40), np.uint8), metadata=coarse, **options)
        levels = [np.stack([truth if n == planes // 2 else 255 - truth for n in range(planes)])]
        levels.append(np.stack([reduced(plane, 4) for plane in levels[0]]))
        levels = [one if planes > 1 else one[0] for one in levels]
        tiff.write(levels[0], subifds=1, metadata=axes | scale, **options)
        tiff.write(levels[1], subfiletype=1, **options)
    return Built(path, truth, mpp, None, format="OME-TIFF", codec="Deflate", planes=planes)
