"""Zeiss CZI that OpenSlide refuses (JPEG XR, focal planes), read with Zeiss' own pylibCZIrw: the extra `[czi]`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.lengths import number
from wsi_stain.slide.readers.base import DecodeError, SlideMetadata, UnsupportedFormat
from wsi_stain.slide.readers.select import choose_plane

INSTALL = "pip install 'wsi-stain[czi]'"
CODECS = {0: "none", 1: "JPEG", 4: "JPEG XR", 5: "Zstd", 6: "Zstd"}
"""Compression of a subblock (ZISRAW 1.2, DirectoryEntryDV)."""
LARGEST_FACTOR = 1 << 12


class CziBackend:
    """All scenes of a CZI as one image, as OpenSlide shows them; white where nothing was scanned.

    Args:
        path: the file.
        z: number of the focal plane; `None` reads the middle one.
    """

    name = "pylibCZIrw"

    def __init__(self, path: Path, z: int | None = None) -> None:
        czi = _import_czi()
        self._lock = threading.Lock()  # the library does not say that several threads can use one document
        try:
            self._czi = czi.CziReader(str(path))
        except Exception as err:  # the library raises RuntimeError for any fault
            raise UnsupportedFormat(f"cannot be opened by pylibCZIrw ({err})") from err
        try:
            self._open(path, z)
        except (UnsupportedFormat, SlideError):
            self.close()
            raise
        except Exception as err:
            self.close()
            raise UnsupportedFormat(f"has a CZI header that cannot be used ({err or type(err).__name__})") from err

    def _open(self, path: Path, z: int | None) -> None:
        kinds = set(self._czi.pixel_types.values())
        if kinds != {"Bgr24"}:
            raise UnsupportedFormat(
                f"has {', '.join(sorted(kinds))} pixels, not 8-bit RGB; fluorescence and single-channel images are not "
                "supported, pass a brightfield slide"
            )
        extent = self._czi.total_bounding_rectangle_no_pyramid
        lengths = {axis: high for axis, (_, high) in self._czi.total_bounding_box.items() if axis not in "CXY"}
        plane = choose_plane(path.name, "".join(lengths), tuple(lengths.values()), z)
        self._plane = {"C": 0, **dict.fromkeys(lengths, 0), **dict(plane.position)}
        self._origin = extent.y, extent.x
        self._factors, codecs = self._levels()
        self.sizes = tuple(Size(extent.h // factor, extent.w // factor) for factor in self._factors)
        self.metadata = _metadata(self._czi.raw_metadata, codecs, plane.number, plane.notes)

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `DecodeError`."""
        factor, (y0, x0) = self._factors[level], self._origin
        roi = (x0 + box.x0 * factor, y0 + box.y0 * factor, box.size.w * factor, box.size.h * factor)
        try:
            with self._lock:
                pixels = self._czi.read(roi=roi, plane=self._plane, zoom=1 / factor, background_pixel=(1, 1, 1))
        except Exception as err:  # whatever damaged data leads to
            raise DecodeError(f"subblocks at {roi[0]}, {roi[1]}: {err or type(err).__name__}") from err
        if pixels.shape != (*box.size, 3):
            raise DecodeError(f"a region of {box.size} was read as {pixels.shape}")
        return np.ascontiguousarray(pixels[..., ::-1])

    def renew(self) -> None:
        """Nothing to renew: a failed read leaves the file usable."""

    def close(self) -> None:
        """Close the file, after the reads that are running."""
        with self._lock:
            self._czi.close()

    def _levels(self) -> tuple[tuple[int, ...], set[int]]:
        """Level-0 px per px of each level that the file holds, powers of two, finest first; and the codecs."""
        factors, codecs = {1}, set[int]()

        def look(_: int, block: Any) -> bool:
            factors.add(round(block.logicalRect.w / max(1, block.physicalSize.w)))
            codecs.add(block.compressionModeRaw)
            return True

        self._czi.enumerate_subblocks(look)
        return tuple(sorted(f for f in factors if f & (f - 1) == 0 and 0 < f <= LARGEST_FACTOR)), codecs


def _import_czi() -> Any:
    try:
        from pylibCZIrw import czi
    except ImportError as err:
        raise UnsupportedFormat(f"needs pylibCZIrw, which is not installed: {INSTALL}") from err
    return czi


def _metadata(xml: str, codecs: set[int], plane: int | None, notes: tuple[str, ...]) -> SlideMetadata:
    root = ElementTree.fromstring(xml)
    across, down = (number(_text(root, f".//Scaling/Items/Distance[@Id='{axis}']/Value")) for axis in "XY")
    return SlideMetadata(
        vendor="zeiss",
        format="CZI",
        mpp=(across * 1e6, down * 1e6) if across and down else None,
        mpp_from="CZI Scaling/Items/Distance",
        magnification=number(_text(root, ".//Instrument/Objectives/Objective/NominalMagnification")),
        codec=", ".join(sorted(_names(codecs))),
        plane=plane,
        notes=notes,
    )


def _text(root: ElementTree.Element, path: str) -> str:
    element = root.find(path)
    return "" if element is None or element.text is None else element.text


def _names(codecs: set[int]) -> Iterator[str]:
    yield from {CODECS.get(code, f"code {code}") for code in codecs}
