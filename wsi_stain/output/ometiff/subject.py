"""What the rules look at: one opened file, and the problems they find in it."""

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
    """`error`: some reader shows it wrong or not at all. `warning`: it opens, but something is lost or slow."""
    rule: int
    """Number of the rule, 1–22; each rule function says in its docstring what it asks for."""
    message: str
    """One sentence: what is wrong, the value, and the next step."""


def error(rule: int, message: str) -> Problem:
    """A problem that makes some reader fail."""
    return Problem("error", rule, message)


def warning(rule: int, message: str) -> Problem:
    """A problem that the file opens with."""
    return Problem("warning", rule, message)


@dataclass(frozen=True, slots=True)
class Subject:
    """An open TIFF with its OME-XML; whatever the file lacks is None or empty."""

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
        """Whether wsi-stain says it has made the file: a few rules hold only for virtual stains."""
        return self.ome is not None and self.ome.get("Creator", "").startswith("wsi-stain")
