"""Input and output of the rules: one open file, and the problems found in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
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
    def is_ours(self) -> bool:
        """Whether the file names wsi-stain as its creator: a few rules apply only to virtual stains."""
        return self.ome is not None and self.ome.get("Creator", "").startswith("wsi-stain")
