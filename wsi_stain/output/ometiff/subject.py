"""Input and output of the rules: one open file, and the problems found in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from wsi_stain.output.ometiff.tiff import DESCRIPTION, Page, Tiff
from wsi_stain.output.ometiff.xml import parse

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule."""

    severity: Severity
    """`error`: some reader shows the file incorrectly or not at all. `warning`: it opens, but with losses or slowly."""
    rule: int
    """Number of the rule, 1–22; the docstring of each rule function states the rule."""
    message: str
    """One sentence: the defect, the value, and the next step."""


def error(rule: int, message: str) -> Problem:
    """A problem that makes at least one reader fail."""
    return Problem("error", rule, message)


def warning(rule: int, message: str) -> Problem:
    """A problem that does not prevent the file from opening."""
    return Problem("warning", rule, message)


@dataclass(frozen=True, slots=True)
class Subject:
    """An open TIFF with its OME-XML; missing parts are None or empty."""

    tiff: Tiff
    name: str
    """Name of the finished file."""
    levels: tuple[Page, ...]
    """The first page and its SubIFDs."""
    description: str
    ome: ET.Element | None

    @classmethod
    def of(cls, tiff: Tiff, name: str) -> Subject:
        """Read the list of levels and the description."""
        first = tiff.pages[0]
        description = first.text(DESCRIPTION)
        return cls(tiff, name, (first, *tiff.reduced(first)), description, parse(description))

    @property
    def first(self) -> Page:
        """Level 0."""
        return self.levels[0]

    @property
    def image(self) -> ET.Element | None:
        """The first Image of the OME-XML."""
        return None if self.ome is None else self.ome.find("Image")

    @property
    def pixels(self) -> ET.Element | None:
        """The Pixels of the first Image."""
        return None if self.ome is None else self.ome.find("Image/Pixels")

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of a fluorescence image; empty for colours.

        It is one if its OME-XML gives each of its channels one sample, a name and a colour; channels that are named
        after the primary colours are an image in colours, split by mistake.
        """
        if self.pixels is None:
            return ()
        channels = self.pixels.findall("Channel")
        names = [channel.get("Name", "") for channel in channels]
        if not all(c.get("SamplesPerPixel", "1") == "1" and c.get("Color") and c.get("Name") for c in channels):
            return ()
        return () if {name.lower() for name in names} == {"red", "green", "blue"} else tuple(names)

    @property
    def samples(self) -> int:
        """Values of a pixel of a page: 3 for colours, 1 for fluorescence."""
        return 1 if self.channels else 3

    @property
    def planes(self) -> tuple[tuple[Page, ...], ...]:
        """The levels of every channel of a fluorescence image; those of the only image for colours."""
        if not self.channels:
            return (self.levels,)
        return tuple((page, *self.tiff.reduced(page)) for page in self.tiff.pages[: len(self.channels)])

    def pages(self) -> Iterator[tuple[str, Page]]:
        """All levels of all channels, with words for them in messages."""
        for number, levels in enumerate(self.planes):
            of = f" of channel {self.channels[number]!r}" if self.channels else ""
            yield from ((f"level {level}{of}", page) for level, page in enumerate(levels))

    @property
    def is_ours(self) -> bool:
        """Whether the file names wsi-stain as its creator: a few rules apply only to virtual stains."""
        return self.ome is not None and self.ome.get("Creator", "").startswith("wsi-stain")
