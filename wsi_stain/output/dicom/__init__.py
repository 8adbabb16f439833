"""DICOM whole-slide series of virtual stains: write, check and describe them.

write(folder, source, metadata)    copies encoded tiles into one instance per level
problems(path)                     what is wrong with a series
describe(path)                     the contents and provenance of a series
hints(path)                        what a series may tell about a person
"""

from wsi_stain.output.dicom.encoding import DicomEncoding
from wsi_stain.output.dicom.header import MANUFACTURER
from wsi_stain.output.dicom.read import describe, header_of, provenance, texts
from wsi_stain.output.dicom.rules import hints, is_series, problems
from wsi_stain.output.dicom.write import write

__all__ = [
    "MANUFACTURER",
    "DicomEncoding",
    "describe",
    "header_of",
    "hints",
    "is_series",
    "problems",
    "provenance",
    "texts",
    "write",
]
