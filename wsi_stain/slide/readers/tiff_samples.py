"""How the samples of a TIFF become RGB: photometric interpretation, extra samples, codec, and separate colour planes.

What is not brightfield RGB is refused by name; what OpenSlide converts is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TIFF

from wsi_stain.errors import SlideError
from wsi_stain.slide.readers.base import UnsupportedFormat, over_white
from wsi_stain.slide.readers.jpeg import Colours, decode_jpeg
from wsi_stain.slide.readers.jpeg2000_damage import check_jpeg2000

RGB_CODECS = (COMPRESSION.JPEG, COMPRESSION.OJPEG, COMPRESSION.WEBP)
"""Codecs that decode to RGB for any photometric interpretation in the file."""
JPEG_2000 = (
    COMPRESSION.JPEG2000,
    COMPRESSION.JPEG_2000_LOSSY,
    COMPRESSION.APERIO_JP2000_YCBC,
    COMPRESSION.APERIO_JP2000_RGB,
)
REFUSED = {
    PHOTOMETRIC.PALETTE: "the colours of a palette",
    PHOTOMETRIC.CIELAB: "CIE L*a*b* colours",
    PHOTOMETRIC.ICCLAB: "ICC L*a*b* colours",
    PHOTOMETRIC.ITULAB: "ITU L*a*b* colours",
    PHOTOMETRIC.CFA: "raw sensor data (CFA)",
    PHOTOMETRIC.LINEAR_RAW: "raw sensor data (LinearRaw)",
}
TO_RGB = "convert it to 8-bit sRGB first, for example with `vips colourspace in.tif out.tif srgb`"
FLUORESCENCE = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
"""Attributes of an OME channel that only fluorescence has."""
RED_GREEN_BLUE = re.compile(r"^(r|g|b|red|green|blue|rgb|brightfield|channel[ _:]*[\d:]*|[\d:]*)$", re.IGNORECASE)
"""Names of channels that are the colours of one camera, or say nothing."""

Decode = Callable[[bytes, int], np.ndarray]


@dataclass(frozen=True, slots=True)
class SamplePlane:
    """Segments that hold all colours of a level, or one of three."""

    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decode: Decode
    """The bytes and the index of a segment to uint8 (h, w, samples)."""


def planes(series: Any, plane: int = 0) -> tuple[SamplePlane, ...]:
    """The segments of one plane of a level: one `SamplePlane` of interleaved colours, or three.

    Args:
        series: tifffile's series of the level.
        plane: index among the focal planes and times, in the order of the axes; colour channels are not counted.
    """
    page = series.keyframe
    if series.axes.endswith("S"):
        return (_interleaved(_page(series, plane)),)
    if page.planarconfig == PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
        return _separate(_page(series, plane))
    return tuple(_interleaved(_page(series, index)) for index in _channels(series.axes, series.shape, plane))


def to_rgb(series: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The conversion of decoded samples, uint8 (h, w, samples), to uint8 (h, w, 3) RGB.

    Raises:
        SlideError: the file is not a brightfield slide, or stores colours that are refused.
        UnsupportedFormat: only this reader cannot read it.
    """
    page, name = series.keyframe, series.parent.filename
    if page.photometric in REFUSED:
        raise SlideError(f"{name} stores {REFUSED[page.photometric]}, not RGB; {TO_RGB}")
    _check_colours(series)
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise SlideError(
            f"{name} has {page.bitspersample} bits per sample ({page.dtype}); it must be 8-bit RGB; {TO_RGB}"
        )
    _check_codec(page)
    if page.photometric == PHOTOMETRIC.SEPARATED:
        return _cmyk(page, name)
    if page.photometric not in (PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK) and page.compression not in RGB_CODECS:
        photometric, codec = PHOTOMETRIC(page.photometric).name, COMPRESSION(page.compression).name
        raise UnsupportedFormat(f"stores {photometric} as {codec}, which has no conversion to RGB; {TO_RGB}")
    return _extra(tuple(page.extrasamples))


def _check_colours(series: Any) -> None:
    page = series.keyframe
    if series.axes.endswith("S"):
        is_colour = page.samplesperpixel in (3, 4) and page.photometric != PHOTOMETRIC.MINISBLACK
    else:
        lengths = dict(zip(series.axes, series.shape, strict=True))
        is_colour = (
            lengths.get("S", lengths.get("C", 1)) == 3 and series.axes.endswith("YX") and not _is_fluorescence(series)
        )
    if not is_colour:
        shape = "×".join(str(n) for n in series.shape)
        raise SlideError(
            f"{series.parent.filename} has {shape} ({series.axes}) values, not RGB pixels; "
            "fluorescence and single-channel images are not supported, pass a brightfield slide"
        )


def _is_fluorescence(series: Any) -> bool:
    """Whether the metadata of three separate channels shows that they are not red, green and blue."""
    tiff = series.parent
    if tiff.is_qpi:
        return True
    channels = re.findall(r"<(?:\w+:)?Channel\b[^>]*>", tiff.ome_metadata or "") if tiff.is_ome else []
    names = [name[1] for channel in channels if (name := re.search(r'\bName="([^"]*)"', channel))]
    return any(f"{attribute}=" in channel for channel in channels for attribute in FLUORESCENCE) or any(
        not RED_GREEN_BLUE.match(name.strip()) for name in names
    )


def _check_codec(page: Any) -> None:
    """Refuse a codec before the first tile is read: tifffile reports it only then, like damage."""
    codec = page.compression
    if codec != COMPRESSION.NONE and codec not in TIFF.DECOMPRESSORS:
        raise UnsupportedFormat(
            f"is compressed with {codec!s}, which cannot be decoded; convert it, for example with vips"
        )
    if codec == COMPRESSION.APERIO_JP2000_YCBC and page.description.startswith("Aperio"):
        # Aperio's code stands for YCbCr samples, whatever the photometric tag says; OpenSlide converts them.
        raise UnsupportedFormat("stores YCbCr as JPEG 2000 in Aperio's way")


def _page(series: Any, index: int) -> Any:
    page = series[index] if index < len(series) else None
    if page is None or page.parent is not series.parent:
        raise SlideError(f"{series.parent.filename} keeps these pixels in another file; pass the file that holds them")
    return page


def _interleaved(page: Any) -> SamplePlane:
    """All segments of a page."""
    return SamplePlane(tuple(page.dataoffsets), tuple(page.databytecounts), _decoder(page.keyframe))


def _separate(page: Any) -> tuple[SamplePlane, ...]:
    """A page that stores all segments of red, then those of green, then those of blue."""
    n = len(page.dataoffsets) // 3
    decode = _decoder(page.keyframe)

    def of_plane(first: int) -> Decode:
        return lambda data, index: decode(data, index + first)

    return tuple(
        SamplePlane(tuple(page.dataoffsets[at : at + n]), tuple(page.databytecounts[at : at + n]), of_plane(at))
        for at in (0, n, 2 * n)
    )


def _channels(axes: str, shape: Sequence[int], plane: int) -> list[int]:
    """The pages of the three channels of one plane: the axes in front of YX count pages, the last one fastest."""
    outer = [(axis, n) for axis, n in zip(axes, shape, strict=True) if axis not in "YX"]
    sizes = tuple(n for _, n in outer)
    others = tuple(n for axis, n in outer if axis != "C")
    position = list(np.unravel_index(plane, others)) if others else []
    place = [axis for axis, _ in outer].index("C")
    return [int(np.ravel_multi_index([*position[:place], c, *position[place:]], sizes)) for c in range(3)]


def _decoder(page: Any) -> Decode:
    """Decodes the segments of a page; a JPEG's own markers decide about its colours, or else the page's tag."""
    tables = page.jpegtables
    if page.compression == COMPRESSION.JPEG and page.samplesperpixel == 3 and page.planarconfig == PLANARCONFIG.CONTIG:
        header: Colours = "RGB" if page.photometric == PHOTOMETRIC.RGB else "YCBCR"
        return lambda data, index: decode_jpeg(data, otherwise=header, tables=tables)
    decode, is_jpeg_2000 = page.decode, page.compression in JPEG_2000

    def decode_segment(data: bytes, index: int) -> np.ndarray:
        if is_jpeg_2000:
            check_jpeg2000(data)
        return decode(data, index, jpegtables=tables)[0][0]

    return decode_segment


def _extra(extra: tuple[EXTRASAMPLE, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """What a fourth sample means (TIFF 6.0, section 18): it is opacity only if it is declared to be."""
    kind = extra[0] if extra else None
    if kind == EXTRASAMPLE.UNASSALPHA:
        return lambda pixels: over_white(pixels) if pixels.shape[2] == 4 else pixels
    if kind == EXTRASAMPLE.ASSOCALPHA:
        return lambda pixels: _associated_over_white(pixels) if pixels.shape[2] == 4 else pixels
    return lambda pixels: np.ascontiguousarray(pixels[..., :3])


def _associated_over_white(pixels: np.ndarray) -> np.ndarray:
    """Colours already multiplied by their opacity, over white."""
    rest = 255 - pixels[..., 3:].astype(np.uint16)
    return np.minimum(pixels[..., :3] + rest, 255).astype(np.uint8)


def _cmyk(page: Any, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Inks to RGB without a profile, as libtiff does (tif_getimage.c, putRGBcontig8bitCMYKtile)."""
    if page.samplesperpixel != 4 or page.tags.valueof(332, default=1) != 1:
        raise SlideError(f"{name} stores {page.samplesperpixel} inks that are not CMYK; {TO_RGB}")
    if page.iccprofile and page.iccprofile[16:20] == b"CMYK":
        raise SlideError(
            f"{name} stores CMYK with a printing profile; convert it to sRGB by this profile first, for example with "
            "`vips icc_transform in.tif out.tif srgb --embedded`"
        )

    def convert(pixels: np.ndarray) -> np.ndarray:
        light = 255 - pixels.astype(np.uint16)
        return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)

    return convert
