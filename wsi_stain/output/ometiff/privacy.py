"""Finds what a TIFF may tell about a patient or a user: texts, dates, paths, label and macro images.

It lists what a person should look at; pixels are not read, so that writing inside the picture is not found.
"""

from __future__ import annotations

import mmap
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tifffile import TiffFile

from wsi_stain.errors import SlideError
from wsi_stain.files.notice import NOTICE

TAGS = {
    269: "DocumentName",
    271: "Make",
    272: "Model",
    285: "PageName",
    306: "DateTime",
    315: "Artist",
    316: "HostComputer",
    333: "InkNames",
    33432: "Copyright",
    33723: "IPTC",
    34377: "Photoshop",
    34665: "EXIF",
    34853: "GPS",
    37500: "MakerNote",
    42016: "ImageUniqueID",
    65427: "NDPI.Reference",
    65449: "NDPI.Properties",
}
"""Tags that describe persons, times, places and devices. `Software` names the writer alone."""
KEYS = re.compile(
    rb"(?i)\b(patient|name of|born|birth|mrn|accession|case ?(?:id|no|number)|barcode|label ?text|user|operator"
    rb"|pathologist|physician|hospital|institution|station ?name|scanscope ?id|serial ?number|filename|title|date"
    rb"|time)\b"
    rb"\s*(?:[=:|>]|\"\s*[=:>])\s*[^\s|<\"\0]"
)
PATHS = re.compile(rb"(?:/home/|/Users/|[A-Za-z]:\\\\?Users\\\\?)[^\s/\\\"'<>\0]+")
ELEMENTS = frozenset(
    {
        *("Experimenter", "ExperimenterGroup", "Project", "Dataset", "Experiment", "AcquisitionDate", "Description"),
        *("Screen", "Plate", "Folder", "CommentAnnotation", "FileAnnotation", "XMLAnnotation", "TagAnnotation"),
        *("TimestampAnnotation", "MapAnnotation"),
    }
)
OTHER_IMAGE = re.compile(r"(?i)\b(label|macro|barcode|overview|thumbnail)\b")
LONGEST = 80


@dataclass(frozen=True, slots=True)
class Hint:
    """Something to look at."""

    where: str
    """Page and tag, or the position in the file."""
    what: str
    text: str
    """The beginning of what is there."""


def hints(path: Path) -> list[Hint]:
    """What a TIFF may tell about a person; empty if nothing was found.

    Raises:
        SlideError: the file is not a TIFF, or cannot be read.
    """
    try:
        with TiffFile(path) as tiff:
            found = [hint for number, page in enumerate(tiff.pages) for hint in _of_page(number, page)]
        return list(dict.fromkeys([*found, *_of_bytes(path)]))
    except OSError as err:
        raise SlideError(f"cannot read {path}: {err.strerror or err}; check the path") from err
    except Exception as err:  # a damaged file leads tifffile to errors of any kind
        raise SlideError(f"{path} is not a TIFF that can be examined ({err}); choose a complete OME-TIFF") from err


def _of_page(number: int, page: Any) -> Iterator[Hint]:
    tags = getattr(page, "tags", None)
    if tags is None:  # a page that shares the tags of another one
        return
    where = f"page {number}"
    for code, name in TAGS.items():
        value = tags.valueof(code)
        if value not in (None, "", b""):
            yield Hint(where, name, short(value))
    text = page.description or ""
    if number and (OTHER_IMAGE.search(text) or tags.valueof(254) in (9, 8)):
        lines = text.strip().splitlines() or ["label or macro"]
        yield Hint(where, "image beside the slide", short(lines[-1]))
    if "<OME" in text:
        yield from _of_ome(where, text)


def _of_ome(where: str, text: str) -> Iterator[Hint]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        yield Hint(where, "OME-XML with a document type", short(text))
        return
    try:
        root = ET.fromstring(text)
    except ET.ParseError as err:
        yield Hint(where, "OME-XML that cannot be read", str(err))
        return
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name in ELEMENTS:
            texts = [*element.attrib.values(), *map(str.strip, element.itertext())]
            content = " ".join(filter(None, texts))
            if NOTICE not in content:  # ours, without texts from the slide
                yield Hint(where, f"OME-XML {name}", short(content))


def _of_bytes(path: Path) -> Iterator[Hint]:
    """Keys and home folders anywhere in the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for what, pattern in (("a key", KEYS), ("a home folder", PATHS)):
            for match in pattern.finditer(content):
                around = content[match.start() : match.end() + LONGEST]
                text = re.split(rb"[\0\r\n|<]", around, maxsplit=1)[0]
                if text.isascii() and all(32 <= byte < 127 for byte in text):
                    yield Hint(f"byte {match.start():,}", what, short(text.decode()))


def short(value: Any) -> str:
    """The beginning of a value, in one line."""
    text = " ".join((value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
