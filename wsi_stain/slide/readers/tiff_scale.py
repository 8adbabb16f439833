"""µm/px and magnification of a TIFF: OME-XML first, then Aperio's text, ImageJ's unit, and the resolution tags."""

from __future__ import annotations

import re
from typing import Any

from tifffile import RESUNIT

from wsi_stain.slide.lengths import in_um, number
from wsi_stain.slide.readers.tiff_images import Image

UNIT_NAMES = {
    RESUNIT.INCH: "inch",
    RESUNIT.CENTIMETER: "cm",
    RESUNIT.MILLIMETER: "mm",
    RESUNIT.MICROMETER: "µm",
}


def tiff_mpp(image: Image, page: Any) -> tuple[tuple[float, float] | None, str]:
    """µm per px along (x, y), and the properties that hold it, or would hold it."""
    if image.what.mpp:
        return image.what.mpp, "OME PhysicalSizeX and PhysicalSizeY"
    text = description(page)
    aperio = number(aperio_values(text).get("MPP"))
    if aperio:
        return (aperio, aperio), "aperio.MPP"
    unit = re.search(r"^unit=(.*)$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    if unit:
        return _per_px(page, unit[1]), "the ImageJ unit, tiff.XResolution and tiff.YResolution"
    per_px = _per_px(page, UNIT_NAMES.get(_value(page, "ResolutionUnit"), ""))
    head = "aperio.MPP, " if text.startswith("Aperio ") and per_px is None else ""
    return per_px, head + "tiff.XResolution and tiff.YResolution"


def tiff_magnification(image: Image, objectives: dict[str, float], page: Any) -> float | None:
    """The objective's nominal power, from Aperio's text or from OME-XML."""
    power = number(aperio_values(description(page)).get("AppMag"))
    if power is not None or image.ome is None:
        return power
    settings = image.ome.find("{*}ObjectiveSettings")
    key = None if settings is None else settings.get("ID")
    return objectives.get(key or "", next(iter(objectives.values()), None))


def aperio_values(text: str) -> dict[str, str]:
    """`KEY = VALUE` between the bars of an Aperio description; the first value of a key counts."""
    values: dict[str, str] = {}
    for part in text.split("|")[1:] if text.startswith("Aperio ") else ():
        key, _, value = part.partition("=")
        values.setdefault(key.strip(), value.strip())
    return values


def description(page: Any) -> str:
    """ImageDescription of a page, in any encoding."""
    value = page.tags.valueof(270, default="")
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _per_px(page: Any, unit: str) -> tuple[float, float] | None:
    """The length of a px along (x, y) in µm, from px per unit."""
    lengths: list[float] = []
    for tag in ("XResolution", "YResolution"):
        value = _value(page, tag)
        px, units = value if isinstance(value, tuple) and len(value) == 2 else (0, 0)
        length = in_um(units / px, unit) if px and units else None
        if length is None:
            return None
        lengths.append(length)
    return lengths[0], lengths[1]


def _value(page: Any, tag: str) -> Any:
    return page.tags.valueof(tag)
