"""Files that are only the cover of a folder with the pixels: MIRAX (.mrxs) and Olympus (.vsi).

The cover itself opens as an ordinary picture, often an overview with the label; it must never be taken for the slide.
"""

from __future__ import annotations

from pathlib import Path

import openslide

from wsi_stain.errors import SlideError


def opened_path(path: Path) -> Path:
    """The path at which OpenSlide finds a slide's other files: the given one, or the target of a symbolic link.

    Raises:
        SlideError: the file is a cover whose pixels are missing or cannot be read.
    """
    places = list(dict.fromkeys((path, path.resolve())))
    for place in places:
        vendor = openslide.OpenSlide.detect_format(place)
        if vendor and not (vendor == "generic-tiff" and place.suffix.lower() == ".vsi"):  # that cover is a TIFF
            return place
    for place in reversed(places):  # the folder lies beside the target
        if place.suffix.lower() == ".mrxs":
            raise SlideError(f"{path.name} is only the cover of a MIRAX slide; {_mirax_problem(place)}")
        if place.suffix.lower() == ".vsi":
            raise SlideError(f"{path.name} is only the cover of an Olympus slide; {_olympus_problem(place)}")
    return path


def _mirax_problem(cover: Path) -> str:
    folder = cover.with_suffix("")
    if not folder.is_dir():
        return f"its pixels are in the folder {folder}, which is missing; copy that folder there, too"
    if not (folder / "Slidedat.ini").is_file():
        return f"the folder {folder} with its pixels has no Slidedat.ini; copy that folder again"
    if cover.suffix != ".mrxs":
        return f"OpenSlide requires the ending .mrxs in small letters; rename it to {cover.stem}.mrxs"
    return f"OpenSlide does not recognise the folder {folder} with its pixels; copy that folder again"


def _olympus_problem(cover: Path) -> str:
    folder = cover.with_name(f"_{cover.stem}_")
    if not folder.is_dir():
        return f"its pixels are in the folder {folder}, which is missing; copy that folder there, too"
    return "OpenSlide cannot read this format; convert it, for example to OME-TIFF with bfconvert"
