"""Every format that can be built, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from builders.formats import czi, dicom, hamamatsu, mirax, omezarr, tiff
from builders.formats.picture import Built

SIDE_BY_SIDE = ((10001, 20003, 900, 640), (11206, 20417, 700, 900))
"""Two scanned areas whose places are no multiples of a level pixel, on the glass and to each other."""


def _to(name: str, build: Callable[..., Built], **options: object) -> Callable[[Path], Built]:
    return lambda folder: build(folder / name, **options)


FORMATS: dict[str, Callable[[Path], Built]] = {
    "aperio": _to("a.svs", tiff.aperio),
    "aperio-odd-levels": _to("a.svs", tiff.aperio, factors=(3, 10)),
    "aperio-jpeg2000": _to("a.svs", tiff.aperio, lossless=True),
    "leica": _to("a.scn", tiff.leica, areas=SIDE_BY_SIDE),
    "leica-one-area": _to("a.scn", tiff.leica, areas=((10003, 20001, 2600, 530),)),
    "philips": _to("a.tiff", tiff.philips),
    "ventana": _to("a.bif", tiff.ventana),
    "trestle": _to("a.tif", tiff.trestle),
    "huron": _to("a.tif", tiff.plain, vendor="Huron"),
    "argos": _to("a.avs", tiff.plain, vendor="Argos"),
    "tiff": _to("a.tif", tiff.plain),
    "ome": _to("a.ome.tif", tiff.ome),
    "ome-planes": _to("a.ome.tif", tiff.ome, planes=3),
    "ome-macro-first": _to("a.ome.tif", tiff.ome, macro_first=True),
    "ndpi": _to("a.ndpi", hamamatsu.ndpi),
    "vms": _to("vms", hamamatsu.vms),
    "mirax": _to("a.mrxs", mirax.mirax),
    "czi": _to("a.czi", czi.czi, codec="none"),
    "czi-zstd": _to("a.czi", czi.czi, codec="Zstd"),
    "czi-jpegxr": _to("a.czi", czi.czi, codec="JPEG XR"),
    "czi-planes": _to("a.czi", czi.czi, codec="JPEG XR", planes=3),
    "dicom": _to("dicom", dicom.dicom, codec="none"),
    "dicom-jpeg": _to("dicom", dicom.dicom, codec="JPEG"),
    "ome-zarr-0.4": _to("a.zarr", omezarr.ome_zarr, version="0.4"),
    "ome-zarr-0.5": _to("a.zarr", omezarr.ome_zarr, version="0.5"),
    "bioformats2raw": _to("a.zarr", omezarr.ome_zarr, version="0.4", raw=True),
    "dicom-jpeg-422": _to("dicom", dicom.dicom, codec="JPEG 4:2:2"),
}
"""Builders by name; each writes into an empty folder."""
