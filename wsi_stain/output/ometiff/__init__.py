"""Pyramidal OME-TIFFs that open perfectly in QuPath: write one, check any, say what is in it.

write(path, source, metadata)      copies encoded tiles into place
problems(path)                     what is wrong with a file, by the numbered rules
describe(path)                     what a file is, with its provenance
"""

from wsi_stain.output.ometiff.describe import describe
from wsi_stain.output.ometiff.validate import Problem, problems
from wsi_stain.output.ometiff.write import TileSource, write
from wsi_stain.output.ometiff.xml import NOTICE, RESEARCH_USE, OmeMetadata, Roi

__all__ = ["NOTICE", "RESEARCH_USE", "OmeMetadata", "Problem", "Roi", "TileSource", "describe", "problems", "write"]
