"""OME-Zarr 0.1 to 0.5 as input: a multiscale image, or several in the layout that bioformats2raw writes.

slide.zarr/        with `multiscales`: one image
slide.zarr/0, 1 …  and OME/: the images of a file that bioformats2raw converted
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.lengths import in_um, number
from wsi_stain.slide.readers.base import DecodedTileCache, DecodeError, SlideMetadata, UnsupportedFormat
from wsi_stain.slide.readers.select import ImageCandidate, choose_image, choose_plane, of_slide_scale
from wsi_stain.slide.readers.tiff_images import ome_images, ome_mpp

DAMAGED = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError)
"""Exceptions that zarr and its codecs raise on broken input."""


@dataclass(frozen=True, slots=True)
class ZarrImage:
    """One multiscale image."""

    group: Any
    """Its zarr group."""
    scales: Mapping[str, Any]
    """Its entry in `multiscales`."""
    arrays: tuple[Any, ...]
    axes: str
    """Upper-case letters of the axes, such as TCZYX."""
    what: ImageCandidate


class ZarrBackend:
    """One image of an OME-Zarr: chunks are decoded one by one and cached; zarr's arrays are safe among threads."""

    name = "zarr"

    def __init__(self, path: Path, image: int | None = None, z: int | None = None) -> None:
        import zarr

        try:
            root = zarr.open_group(path, mode="r")
            pictures = list(_pictures(root, path))
        except DAMAGED as err:
            raise UnsupportedFormat(
                f"is not a readable Zarr ({err or type(err).__name__}); the folder may be damaged"
            ) from err
        if not pictures:
            raise UnsupportedFormat("holds no OME-Zarr image (no `multiscales`); pass the folder of an image")
        candidates = [picture.what for picture in pictures]
        slides = of_slide_scale(candidates)
        best, notes = choose_image(path.name, candidates, slides, image)
        picture = next(p for p in pictures if p.what is best)
        first = picture.arrays[0]
        _check_pixels(path.name, picture)
        plane = choose_plane(path.name, picture.axes, first.shape, z)
        self._picture, self._position = picture, dict(plane.position)
        self._cache = DecodedTileCache()
        self.sizes = tuple(_size(picture.axes, array.shape) for array in picture.arrays)
        self.metadata = SlideMetadata(
            vendor="generic",
            format=f"OME-Zarr {_version(picture)}",
            mpp=best.mpp,
            mpp_from="the scale and unit of the axes x and y",
            magnification=_magnification(path, best.number),
            codec=", ".join(type(codec).__name__.removesuffix("Codec") for codec in first.compressors) or "none",
            image=best.number if len(slides) > 1 else None,
            plane=plane.number,
            notes=notes + plane.notes,
        )

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `DecodeError`."""
        array, axes = self._picture.arrays[level], self._picture.axes
        chunk = Size(array.chunks[axes.index("Y")], array.chunks[axes.index("X")])
        out = np.empty((*box.size, 3), np.uint8)
        for y in range(box.y0 // chunk.h * chunk.h, box.y1, chunk.h):
            for x in range(box.x0 // chunk.w * chunk.w, box.x1, chunk.w):
                place = Box.at(y, x, chunk) & Box.of(self.sizes[level])
                pixels = self._cache.get((level, y, x), lambda place=place: self._decode(level, place))
                part = place & box
                out[part.shift(-box.y0, -box.x0).slices()] = pixels[part.shift(-y, -x).slices()]
        return out

    def _decode(self, level: int, box: Box) -> np.ndarray:
        axes, rows, columns = self._picture.axes, *box.slices()
        along: dict[str, Any] = {"Y": rows, "X": columns, "C": slice(0, 3)}
        index = tuple(along.get(axis, self._position.get(axis, 0)) for axis in axes)
        try:
            pixels = np.asarray(self._picture.arrays[level][index])
        except DAMAGED as err:
            raise DecodeError(f"a chunk at x {box.x0}, y {box.y0}: {err or type(err).__name__}") from err
        kept = [axis for axis in axes if axis in along]
        return np.ascontiguousarray(pixels.transpose([kept.index(axis) for axis in "YXC"]))

    def renew(self) -> None:
        """Nothing to renew: every read opens its chunk."""

    def close(self) -> None:
        """Drop the decoded chunks."""
        self._cache.clear()


def _pictures(root: Any, path: Path) -> Iterator[ZarrImage]:
    """The image in `root`, or those in its numbered groups."""
    if _attributes(root).get("multiscales"):
        yield _picture(root, 0, None)
        return
    described = ome_images(_ome_xml(path))
    for key in sorted((key for key in root.group_keys() if key.isdigit()), key=int):
        group, n = root[key], int(key)
        if _attributes(group).get("multiscales"):
            yield _picture(group, n, described[n] if n < len(described) else None)


def _picture(group: Any, n: int, described: Any) -> ZarrImage:
    scales = _attributes(group)["multiscales"][0]
    arrays = tuple(group[dataset["path"]] for dataset in scales["datasets"])
    axes = "".join(axis if isinstance(axis, str) else axis["name"] for axis in scales.get("axes", "tczyx")).upper()
    if len(axes) != arrays[0].ndim or not {"Y", "X"} <= set(axes):
        raise ValueError(f"its axes are {axes}, but its array has {arrays[0].ndim}")
    name = str(scales.get("name") or ("" if described is None else described.get("Name", "")))
    mpp = _mpp(scales, axes) or (None if described is None else ome_mpp(described.find("{*}Pixels")))
    channels = arrays[0].shape[axes.index("C")] if "C" in axes else 1
    return ZarrImage(
        group, scales, arrays, axes, ImageCandidate(n, name, _size(axes, arrays[0].shape), mpp, channels == 3)
    )


def _attributes(group: Any) -> Mapping[str, Any]:
    """The attributes of OME: at the top until 0.4, below `ome` from 0.5 on."""
    attributes = group.attrs.asdict()
    return attributes.get("ome", attributes)


def _mpp(scales: Mapping[str, Any], axes: str) -> tuple[float, float] | None:
    """µm per px of level 0 along (x, y); `None` without a unit, which then is not known."""
    steps = [1.0] * len(axes)
    for transforms in (scales["datasets"][0], scales):
        for transform in transforms.get("coordinateTransformations", ()):
            if transform.get("type") == "scale":
                steps = [a * b for a, b in zip(steps, transform["scale"], strict=True)]
    described = scales.get("axes", ())
    units = [str(axis.get("unit", "")) if isinstance(axis, dict) else "" for axis in described] or [""] * len(axes)
    x, y = (in_um(steps[axes.index(axis)], units[axes.index(axis)]) for axis in "XY")
    return None if x is None or y is None else (x, y)


def _check_pixels(name: str, picture: ZarrImage) -> None:
    first, what = picture.arrays[0], picture.what
    if not what.is_colour:
        raise SlideError(
            f"{name} has {'×'.join(map(str, first.shape))} ({picture.axes}) values, not RGB pixels; "
            "fluorescence and single-channel images are not supported, pass a brightfield slide"
        )
    if first.dtype != np.uint8:
        raise SlideError(f"{name} has pixels of {first.dtype}; it must be 8-bit RGB; convert it first")


def _size(axes: str, shape: tuple[int, ...]) -> Size:
    return Size(shape[axes.index("Y")], shape[axes.index("X")])


def _version(picture: ZarrImage) -> str:
    return str(_attributes(picture.group).get("version") or picture.scales.get("version") or "")


def _ome_xml(path: Path) -> str | None:
    try:
        return (path / "OME" / "METADATA.ome.xml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _magnification(path: Path, n: int) -> float | None:
    """The power of the objective that the OME-XML of bioformats2raw gives for an image."""
    from xml.etree import ElementTree

    described = ome_images(_ome_xml(path))
    settings = described[n].find("{*}ObjectiveSettings") if n < len(described) else None
    if settings is None:
        return None
    for objective in ElementTree.fromstring(_ome_xml(path) or "").iterfind("{*}Instrument/{*}Objective"):
        if objective.get("ID") == settings.get("ID"):
            return number(objective.get("NominalMagnification"))
    return None
