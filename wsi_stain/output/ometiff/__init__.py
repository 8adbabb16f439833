"""Pyramidal OME-TIFFs that open correctly in QuPath: write, check and describe them.

write(path, source, metadata)      copies encoded tiles into place
problems(path)                     the violations of the numbered rules in a file
describe(path)                     the contents and provenance of a file
hints(path)                        what a file may tell about a person
"""

from wsi_stain.files.notice import NOTICE, RESEARCH_USE
from wsi_stain.output.ometiff.describe import describe
from wsi_stain.output.ometiff.privacy import Hint, hints
from wsi_stain.output.ometiff.validate import Problem, problems
from wsi_stain.output.ometiff.write import TileSource, write
from wsi_stain.output.ometiff.xml import OmeMetadata, Roi

__all__ = [
    "NOTICE",
    "RESEARCH_USE",
    "Hint",
    "OmeMetadata",
    "Problem",
    "Roi",
    "TileSource",
    "describe",
    "hints",
    "problems",
    "write",
]
